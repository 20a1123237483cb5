"""Whether it worked: the tuned model beside its base on held-out rows, each figure with its uncertainty."""
