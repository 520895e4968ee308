"""Trains what a configuration describes.

python train.py                                                    the digits that come with scikit-learn
python train.py --config configs/eca_resnet50.py --optim.lr 0.4    any other, with overrides; --help lists them
"""

import sys

try:
    from eca_jax.cli import train_main
except KeyboardInterrupt:  # in the first moment; later train_main answers it
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(train_main())
