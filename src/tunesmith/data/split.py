import hashlib
def is_held_out(example, share):
    return int(hashlib.sha256(repr((example.messages, example.text)).encode()).hexdigest()[:8], 16) / 2**32 < share
