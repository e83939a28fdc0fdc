"""Model families other than image classifiers by convolution: one file each, to read and to copy.

    python -m experiments.examples.vision_transformer    a ViT on 32x32 images
    python -m experiments.examples.language_model        a decoder on the text of Python's manual
    python -m experiments.examples.physics               a network pruned by its equation's residual
    python -m experiments.examples.pretrained            trained first, pruned on data, tuned again

Each takes one to three minutes on one core, much of it compilation, downloads nothing and prints
one small table.
"""
