"""What methods are made of: losses, BatchNorm statistics, generators, augmentation, the replay buffer.

Knows nothing of the engine; every piece can be used alone.
"""
