"""Trains what a configuration describes.

python train.py                                                    the digits that come with scikit-learn
python train.py --config configs/eca_resnet50.py --optim.lr 0.4    any other, with overrides; --help lists them
"""

import sys

from eca_jax.cli import train_main

if __name__ == "__main__":
    sys.exit(train_main())
