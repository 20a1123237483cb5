"""Layers that are put into models: fused ones, quantized ones, bottleneck adapters, NEFTune."""
