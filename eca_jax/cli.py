"""The commands: `python train.py` and `eca-jax evaluate | predict | prepare`.

Imports of what takes long to load stand inside the commands that need it.
"""

import argparse
import signal
import sys
from collections.abc import Callable, Sequence

import absl.logging

from eca_jax.errors import EcaJaxError

EXIT_OK = 0
EXIT_USAGE = 2
EXIT_SIGNAL = 128
"""Plus the signal's number: what a shell reports of a process that ended by it. A scheduler starts such a run again."""
DEFAULT_CONFIG = "configs/digits.py"
DEFAULT_RUN = "runs/digits"


def guarded(command: Callable[[], int]) -> int:
    """Runs a command; what the user can mend becomes one line on stderr and the exit status 2, without a traceback."""
    absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax and TFDS warn of what is as it should be
    try:
        return command()
    except (EcaJaxError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGNAL + signal.SIGINT


def train_main(args: Sequence[str] | None = None) -> int:
    """`train.py [--config FILE] [--FIELD VALUE ...]`: 0 when the run is complete, 143 or 130 after a signal."""
    return guarded(lambda: _train(args))


def _train(args: Sequence[str] | None) -> int:
    import tyro

    from eca_jax.config import Config, load_config

    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=DEFAULT_CONFIG)
    known, overrides = parser.parse_known_args(args)
    description = f"Configuration: {known.config} (another with --config FILE). Continues the run in --workdir."
    config = tyro.cli(
        Config, prog="train.py", description=description, default=load_config(known.config), args=overrides
    )

    import jax

    from eca_jax.training.loop import train
    from eca_jax.training.sharding import initialize_cluster
    from eca_jax.training.writers import describe

    initialize_cluster(config.cluster)
    result = train(config)
    say = print if jax.process_index() == 0 else (lambda _: None)
    if not result.finished:
        number = signal.Signals(result.signal or signal.SIGTERM)
        say(f"stopped by {number.name} at step {result.step} of {result.total_steps}; the same command continues it")
        say(f"checkpoint: {result.checkpoint}")
        return EXIT_SIGNAL + number
    if result.new_steps == 0:
        say(f"nothing left to do: {config.workdir} is at step {result.step} of {result.total_steps}; see --epochs")
    if result.evaluation:
        say(f"held-out {describe(result.evaluation)}")
    say(f"checkpoint: {result.checkpoint}")
    return EXIT_OK


def main(args: Sequence[str] | None = None) -> int:
    """`eca-jax COMMAND`."""
    parser = argparse.ArgumentParser(prog="eca-jax", description="ECA-Net in JAX.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    command = commands.add_parser("evaluate", help="score a checkpoint of a run on held-out data")
    _add_run_arguments(command)
    command.add_argument("--split", help="in TFDS's notation; default: the configuration's eval_split")
    command.set_defaults(function=_evaluate)

    command = commands.add_parser("predict", help="print the most probable classes of image files")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    _add_run_arguments(command)
    command.add_argument("--top", type=_positive, default=5, help="classes to print for each image (default: 5)")
    command.set_defaults(function=_predict)

    command = commands.add_parser("prepare", help="download a TFDS data set and write it as ArrayRecord, once")
    command.add_argument("dataset", help="a TFDS name, e.g. cifar10 or imagenet2012")
    command.add_argument("--data-dir", help="default: TFDS's own (TFDS_DATA_DIR, ~/tensorflow_datasets)")
    command.add_argument(
        "--convert-to", metavar="DIR", help="copy one that was prepared as TFRecord into this data-dir"
    )
    command.set_defaults(function=_prepare)

    parsed = parser.parse_args(args)
    return guarded(lambda: parsed.function(parsed))


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default=DEFAULT_RUN, help=f"the workdir of a training run (default: {DEFAULT_RUN})")
    parser.add_argument("--checkpoint", default="latest", help="latest (default), best, or the number of a step")


def _evaluate(args: argparse.Namespace) -> int:
    from eca_jax.training.loop import evaluate_run
    from eca_jax.training.writers import describe

    step, metrics = evaluate_run(args.run, which=args.checkpoint, split=args.split)
    on = f", split {args.split!r}" if args.split is not None else ""
    print(f"{args.run}, step {step}{on}: {describe(metrics)}")
    return EXIT_OK


def _predict(args: argparse.Namespace) -> int:
    from eca_jax.training.predict import predict_files

    for path, classes in predict_files(args.images, run=args.run, which=args.checkpoint, top=args.top):
        print(path)
        for name, probability in classes:
            print(f"  {probability:7.2%}  {name}")
    return EXIT_OK


def _prepare(args: argparse.Namespace) -> int:
    from eca_jax.data.prepare import convert, prepare

    if args.convert_to:
        print(f"converted into {convert(args.dataset, args.data_dir, args.convert_to)}")
    else:
        print(f"prepared in {prepare(args.dataset, args.data_dir)}")
    return EXIT_OK
