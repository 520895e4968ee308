"""Trains what a configuration describes.

python train.py                                        the digits that come with scikit-learn
python train.py --config eca_resnet50 --optim.lr 0.4   any other, by its name or as FILE.py; --help lists the overrides

`eca-jax train` is the same.
"""

import sys

try:
    from eca_jax.cli import train_main
except KeyboardInterrupt:  # in the first moment; later train_main answers it
    print("interrupted", file=sys.stderr)
    sys.exit(130)

if __name__ == "__main__":
    sys.exit(train_main())
