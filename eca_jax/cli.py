"""The commands: `eca-jax train | evaluate | predict | prepare | check | convert | export | precompile | benchmark |
table | figure`.

`python train.py` is `eca-jax train`.

Imports of what takes long to load stand inside the commands that need it.
"""

import argparse
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from eca_jax.errors import EcaJaxError, unknown_option
from eca_jax.interrupts import EXIT_SIGNAL, watched
from eca_jax.output import OutputLost, checked_output
from eca_jax.version import __version__

EXIT_OK = 0
EXIT_ERROR = 1
EXIT_USAGE = 2
DEFAULT_CONFIG = "digits"
DEFAULT_RUN = "runs/digits"


class Parser(argparse.ArgumentParser):
    """Its errors are those of the package: one line. An empty value is refused: `--run "$RUN"` with no such variable
    must not be taken for a command without --run."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.register("type", None, _not_empty)

    def error(self, message: str) -> NoReturn:
        raise EcaJaxError(f"{message} ({self.prog} --help lists what there is)")

    def options(self) -> list[str]:
        """The options that this parser itself knows: ['--config', ...]."""
        return [option for action in self._actions for option in action.option_strings]


def guarded(command: Callable[[], int], *, needs_output: bool = True) -> int:
    """Runs a command; what the user can mend becomes one line on stderr and the exit status 2, without a traceback.

    Ctrl-C leaves with 130, and, where the output is the command's result, a reader that has left with 141.
    """
    try:
        with watched(_leave), checked_output(needed=needs_output):
            return _answered(command)
    except OutputLost as lost:
        if lost.quiet:
            return EXIT_SIGNAL + signal.SIGPIPE
        print(f"error: {lost}", file=sys.stderr)
        return EXIT_USAGE


def _answered(command: Callable[[], int]) -> int:
    try:
        import absl.logging

        absl.logging.set_verbosity(absl.logging.ERROR)  # Orbax and TFDS warn of what is as it should be
        warnings.filterwarnings("ignore", ".* could be decompression bomb")  # of twice as many pixels it is refused
        return command()
    except (EcaJaxError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USAGE
    except RuntimeError as error:
        if "can't start new thread" not in str(error):
            raise
        reason = "the system gives this process no more memory, or no more threads: see ulimit -v and ulimit -u"
        print(f"error: {error}: {reason}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return EXIT_SIGNAL + signal.SIGINT


def _leave(status: int) -> None:
    """Ends this process now; in a cluster as `leave_cluster` does."""
    sharding = sys.modules.get("eca_jax.sharding")  # without it, no cluster was joined
    if sharding is not None:
        sharding.leave_cluster(status)
    os._exit(status)


def train_main(args: Sequence[str] | None = None, prog: str = "train.py") -> int:
    """`train.py [--config NAME] [--FIELD VALUE ...]`: 0 when the run is complete, 128 + number after a signal."""
    status = EXIT_ERROR
    try:
        status = guarded(lambda: _train(args, prog), needs_output=False)
    finally:
        sharding = sys.modules.get("eca_jax.sharding")  # without it, no cluster was joined
        if sharding is not None and status not in (EXIT_OK, EXIT_SIGNAL + signal.SIGTERM):
            sharding.leave_cluster(status)
    return status


def _train(args: Sequence[str] | None, prog: str) -> int:
    parser = Parser(prog=prog, add_help=False, allow_abbrev=False)
    _add_config_argument(parser)
    parser.add_argument("--plugin", action="append", default=[])
    parser.add_argument("--profile", type=_steps, metavar="START:STOP")
    _add_version_argument(parser)
    known, overrides = parser.parse_known_args(args)
    _import_jax()
    _load_plugins(known.plugin)
    from eca_jax.overrides import overridden

    description = f"Configuration: {known.config} (another with --config, by its name or as FILE.py). "
    description += "Continues the run in --workdir. --plugin MODULE (or FILE.py) is imported before. "
    description += "--profile 10:20 traces these steps for TensorBoard's profiler."
    config = overridden(known.config, overrides, prog=prog, description=description, others=parser.options())

    import jax

    from eca_jax.sharding import initialize_cluster
    from eca_jax.training.loop import train

    initialize_cluster(config.cluster)
    _start_jax()
    result = train(config, profile=known.profile)
    say = print if jax.process_index() == 0 else (lambda _: None)
    if not result.finished:
        return _stopped(result, say)
    if result.new_steps == 0:
        say(f"nothing left to do: {config.workdir} is at step {result.step} of {result.total_steps}; see --epochs")
    if result.evaluation:
        say(f"held-out {config.task.describe(result.evaluation)}")
    say(f"checkpoint: {result.checkpoint}")
    return EXIT_OK


def _stopped(result: Any, say: Callable[[str], object]) -> int:
    """Says where a signal has stopped a training, and returns the exit status."""
    number = signal.Signals(result.signal or signal.SIGTERM)
    say(f"stopped by {number.name} at step {result.step} of {result.total_steps}; the same command continues it")
    if result.checkpoint:
        say(f"checkpoint: {result.checkpoint}")
    return EXIT_SIGNAL + number


def main(args: Sequence[str] | None = None) -> int:
    """`eca-jax COMMAND`."""
    args = list(sys.argv[1:] if args is None else args)
    if args[:1] == ["train"]:
        return train_main(args[1:], prog="eca-jax train")
    return guarded(lambda: _command(args))


def _command(args: Sequence[str]) -> int:
    parser, commands = _command_parser()
    if args and args[0].startswith("-") and not any(option.startswith(args[0]) for option in parser.options()):
        raise EcaJaxError(unknown_option(args, args[:1], parser.options()))  # argparse would miss a COMMAND
    parsed, parsed.overrides = parser.parse_known_args(args)
    parsed.options = commands[parsed.command].options()
    command = COMMANDS[parsed.command]
    if parsed.overrides and not command.fields:
        raise EcaJaxError(unknown_option(args, parsed.overrides, parsed.options))
    _import_jax()
    _load_plugins(parsed.plugin)
    return command.run(parsed)


class Command(NamedTuple):
    """One of eca-jax's."""

    about: str
    arguments: Callable[[Parser], None]
    """Adds what it takes."""
    run: Callable[[argparse.Namespace], int]
    fields: str | None = None
    """An example of a configuration's field, where those can be set besides, as in train.py."""


def _command_parser() -> tuple[Parser, Mapping[str, Parser]]:
    """The parser of `eca-jax`, and those of its commands by name."""
    parser = Parser(prog="eca-jax", description="ECA-Net in JAX.")
    _add_version_argument(parser)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.type = str  # it is given the whole rest of the line: the command's parser looks at the values
    commands.add_parser("train", help="train what a configuration describes; the same as train.py")
    parsers, places = {"train": commands.choices["train"]}, {"": commands}
    for name, it in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        if group not in places:
            place = commands.add_parser(group, help=GROUPS[group])
            places[group] = place.add_subparsers(required=True, metavar=group.upper())
            places[group].type = str
        besides = (
            f"Any field of the configuration can be set besides, as in train.py: {it.fields}" if it.fields else None
        )
        command = places[group].add_parser(last, help=it.about, description=besides, allow_abbrev=not it.fields)
        it.arguments(command)
        command.set_defaults(command=name)
        parsers[name] = command
    for command in parsers.values():
        command.add_argument(
            "--plugin", action="append", default=[], metavar="MODULE", help="a module, or FILE.py, to import before"
        )
    return parser, parsers


def _import_jax() -> None:
    """JAX looks at its settings when it is imported."""
    try:
        import jax  # noqa: F401
    except ValueError as error:
        raise EcaJaxError(f"JAX does not take a setting of the environment: {error}") from error


def _start_jax() -> None:
    """What each command does before it computes, when its arguments have been looked at."""
    from eca_jax.compilation_cache import keep_compiled_programs
    from eca_jax.sharding import start_devices

    start_devices()
    keep_compiled_programs()


def _load_plugins(names: Sequence[str]) -> None:
    from eca_jax.plugins import load_plugin

    for name in names:
        load_plugin(name)


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("expected a value, got ''")
    return text


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text!r}")
    return int(text)


def _steps(text: str) -> range:
    """'10:20' -> range(10, 20)."""
    start, _, stop = text.partition(":")
    if not (all(number.isascii() and number.isdecimal() for number in (start, stop)) and int(start) < int(stop)):
        raise argparse.ArgumentTypeError(f"expected START:STOP with START < STOP, such as 10:20, got {text!r}")
    return range(int(start), int(stop))


def _add_version_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--version", action="version", version=f"eca_jax {__version__}")


def _add_config_argument(parser: argparse.ArgumentParser) -> None:
    about = f"one of the package's own by its name, such as eca_resnet50, or FILE.py; default: {DEFAULT_CONFIG}"
    parser.add_argument("--config", default=DEFAULT_CONFIG, help=about)


def _add_checkpoint_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", help="of the run: latest (default), best, or the number of a step")


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", help=f"the workdir of a training run (default: {DEFAULT_RUN})")
    _add_checkpoint_argument(parser)


def _add_key_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-key", help="of a TFDS data set with several images an example: the feature's name")
    parser.add_argument("--label-key", help="of a TFDS data set with several labels: likewise")


def _add_weights_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--weights", help="instead of a run: a weight file, or a name on the Hugging Face hub")
    parser.add_argument("--model", help="the model that --weights are expected to be of")


def _check_weights_arguments(args: argparse.Namespace) -> None:
    """Refuses what belongs to a run beside what belongs to weights, and says what a run has by default."""
    if args.model and not args.weights:
        raise EcaJaxError("--model: goes with --weights FILE; a run says itself which model it is")
    for option, value in (("--run", args.run), ("--checkpoint", args.checkpoint)):
        if args.weights and value:
            raise EcaJaxError(f"--weights {args.weights} and {option} {value}: expected one of the two, leave one out")
    args.run, args.checkpoint = args.run or DEFAULT_RUN, args.checkpoint or "latest"


def _add_preprocess_arguments(parser: argparse.ArgumentParser) -> None:
    """The fields of `eca_jax.data.preprocess.EVALUATION`, as train.py calls them."""
    group = parser.add_argument_group("how images are made (default: as the run or the weights say)")
    group.add_argument(
        "--preprocess.image-size",
        type=_positive,
        metavar="PIXELS",
        help="without --preprocess.eval-resize: that follows",
    )
    group.add_argument("--preprocess.eval-resize", type=_positive, metavar="PIXELS")
    group.add_argument("--preprocess.interpolation", metavar="bilinear|bicubic")
    group.add_argument("--preprocess.mean", type=float, nargs=3, metavar=("R", "G", "B"))
    group.add_argument("--preprocess.std", type=float, nargs=3, metavar=("R", "G", "B"))


def _preprocess_changes(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of the preprocessing that the command line sets anew, by name."""
    given = {name.partition(".")[2]: value for name, value in vars(args).items() if name.startswith("preprocess.")}
    changes = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
    return {name: value for name, value in changes.items() if value is not None}


def _say_preprocess(line: str) -> None:
    """On stderr: what is printed on stdout is the same as before, for those who read it by a program."""
    print(f"preprocess: {line}", file=sys.stderr)


def _evaluated_on(args: argparse.Namespace, changes: Mapping[str, Any]) -> str:
    """What the line with the scores says of data and images that are not those of the run or the weights."""
    from eca_jax.data.preprocess import words

    on = f", data {args.data!r}" if args.data is not None else ""
    on += f", split {args.split!r}" if args.split is not None else ""
    return on + "".join(f", {name} {' '.join(words(value))}" for name, value in changes.items())


def _trained_on(images: int, of: int) -> str:
    """What the line with the scores says of images that a run was trained on."""
    if images == 0:
        return ""
    return f", not held out: {'all' if images == of else images} of the {of} are training images"


def _evaluate_arguments(command: Parser) -> None:
    _add_run_arguments(command)
    _add_weights_arguments(command)
    command.add_argument("--data", help="a TFDS name, or folder:/path; default: the data of the run")
    command.add_argument("--split", help="in TFDS's notation; default: the run's eval_split, or validation or test")
    command.add_argument("--data-dir", help="where TFDS data sets are; default: the run's, or TFDS's own")
    command.add_argument("--per-class", action="store_true", help="print a table of the classes, too")
    command.add_argument("--predictions", metavar="FILE", help="write a CSV table with a row for each example")
    _add_preprocess_arguments(command)
    _add_key_arguments(command)


def _evaluate(args: argparse.Namespace) -> int:
    from eca_jax.convert.files import check_writable, write

    _check_weights_arguments(args)
    if args.predictions:
        check_writable(args.predictions)
    _start_jax()
    changes, starts, examples = _preprocess_changes(args), [], []

    def started(start: Any) -> None:
        starts.append(start)
        _say_preprocess(start.preprocess)

    common = {
        "split": args.split,
        "data_dir": args.data_dir,
        "keys": (args.image_key, args.label_key),
        "preprocess": changes,
        "started": started,
        "each": examples.append if args.per_class or args.predictions else None,
    }
    if args.weights:
        from eca_jax.training.evaluate import evaluate_weights

        if not args.data:
            raise EcaJaxError("--weights: say on which data, such as --data imagenet2012")
        task, scores = evaluate_weights(args.weights, args.data, name=args.model, **common)
        what = args.weights
    else:
        from eca_jax.training.evaluate import evaluate_run

        step, task, scores = evaluate_run(args.run, which=args.checkpoint, data=args.data, **common)
        what = f"{args.run}, step {step}"
    on = _evaluated_on(args, changes) + _trained_on(starts[0].training_images, starts[0].images)
    print(f"{what}{on}: {task.describe(scores)}", flush=True)
    if args.predictions:
        write(args.predictions, examples[0].to_csv())
    for line in examples[0].per_class() if args.per_class else ():
        print(line)
    return EXIT_OK


def _predict_arguments(command: Parser) -> None:
    about = "an image file, or a directory whose images are all taken, at any depth"
    command.add_argument("images", nargs="+", metavar="IMAGE", help=about)
    _add_run_arguments(command)
    _add_weights_arguments(command)
    command.add_argument("--top", type=_positive, default=5, help="classes to print for each image (default: 5)")
    about = "images at once, on all devices together (default: 64 for each device)"
    command.add_argument("--batch-size", type=_positive, metavar="N", help=about)
    about = "of what is printed, or of --output whatever its ending; default: text"
    command.add_argument("--format", choices=("text", "csv", "jsonl"), help=about)
    about = "a .csv or .jsonl file, written in place of printing (replaced if it is there)"
    command.add_argument("--output", metavar="FILE", help=about)
    _add_preprocess_arguments(command)


def _predict(args: argparse.Namespace) -> int:
    import tqdm

    from eca_jax.data.folders import find_images
    from eca_jax.training.predict import predict_files
    from eca_jax.training.prediction_rows import row_writer

    _check_weights_arguments(args)
    form = _prediction_format(args)
    _start_jax()
    model, task, names = _to_predict_with(args)
    files, unreadable = find_images(args.images), []
    warn = _warn_of(unreadable, len(files))
    found = predict_files(files, model=model, task=task, batch_size=args.batch_size, unreadable=warn)
    if form == "text":
        for file, prediction in found:
            lines = [file, *(f"  {line}" for line in task.describe_prediction(prediction, names, args.top))]
            print("\n".join(lines), flush=True)
    else:
        bar = tqdm.tqdm(found, total=len(files), unit="img", disable=None if args.output else True)  # None: no terminal
        with row_writer(form, args.output) as write:
            for file, prediction in bar:
                write({"path": file, **task.prediction_row(prediction, names, args.top)})
    if args.output:
        print(f"{args.output}: {len(files) - len(unreadable):,} predictions")
    _expect_all_read(unreadable, len(files))
    return EXIT_OK


def _prediction_format(args: argparse.Namespace) -> str:
    """'text', 'csv' or 'jsonl'."""
    if not args.output:
        return args.format or "text"
    form = args.format or os.path.splitext(args.output)[1].removeprefix(".").lower()
    if form not in ("csv", "jsonl"):
        what = f"--format {form}" if args.format else f"--output {args.output}"
        raise EcaJaxError(f"{what}: a file is written as .csv or .jsonl: name it so, or say --format csv or jsonl")
    return form


def _to_predict_with(args: argparse.Namespace) -> tuple[Any, Any, Sequence[str]]:
    """The model, the task and the class names of the weights or the run."""
    changes = _preprocess_changes(args)
    if args.weights:
        from eca_jax.convert.pretrained import load

        loaded = load(args.weights, name=args.model)
        task = loaded.task.with_preprocess(changes)
        _say_preprocess(loaded.describe_preprocess(task.preprocess))
        return loaded.model, task, loaded.names
    from eca_jax.runs.run import load_run

    model, config, names = load_run(args.run, args.checkpoint)
    task = config.task.with_preprocess(changes)
    _say_preprocess(task.preprocess.describe_evaluation())
    return model, task, names


def _warn_of(unreadable: list[EcaJaxError], files: int) -> Callable[[EcaJaxError], None]:
    """Names each file that cannot be read when it is met, where there are others: those go on."""
    import tqdm

    def warn(error: EcaJaxError) -> None:
        unreadable.append(error)
        if files > 1:
            tqdm.tqdm.write(f"warning: {error}", file=sys.stderr)  # above a bar, if there is one

    return warn


def _expect_all_read(unreadable: Sequence[EcaJaxError], files: int) -> None:
    """Ends with an error where a file could not be read, when the predictions on all others have been written."""
    if unreadable and files == 1:
        raise unreadable[0]
    if unreadable:
        raise EcaJaxError(
            f"{len(unreadable):,} of {files:,} files cannot be read as images, each is named above; "
            "the predictions on all others are there"
        )


def _prepare_arguments(command: Parser) -> None:
    command.add_argument("dataset", help="a TFDS name, e.g. cifar10 or imagenet2012")
    command.add_argument("--data-dir", help="default: TFDS's own (TFDS_DATA_DIR, ~/tensorflow_datasets)")
    command.add_argument(
        "--manual-dir", metavar="DIR", help="where files are that are fetched by hand, such as ImageNet's two tar files"
    )
    command.add_argument(
        "--convert-to", metavar="DIR", help="copy one that was prepared as TFRecord into this data-dir"
    )


def _prepare(args: argparse.Namespace) -> int:
    from eca_jax.data.prepare import convert, prepare

    if args.convert_to:
        print(f"converted into {convert(args.dataset, args.data_dir, args.convert_to)}")
    else:
        print(f"prepared in {prepare(args.dataset, args.data_dir, args.manual_dir)}")
    return EXIT_OK


def _check_arguments(command: Parser) -> None:
    command.add_argument("data", metavar="DATA", help="a TFDS name, folder:/path or csv:/path")
    command.add_argument("--split", help="in TFDS's notation; default: every split that the data set has")
    command.add_argument("--data-dir", help="where TFDS data sets are; default: TFDS's own")
    _add_key_arguments(command)


def _check(args: argparse.Namespace) -> int:
    from eca_jax.data.check import check, class_differences
    from eca_jax.data.config import DataConfig
    from eca_jax.data.sources import known_splits, open_source

    splits = [args.split] if args.split else known_splits(args.data, args.data_dir)
    keys = (args.image_key, args.label_key)
    sources = [open_source(args.data, split, args.data_dir, keys) for split in splits]
    differences = class_differences(sources)
    status = EXIT_ERROR if differences else EXIT_OK
    for source in sources:
        report = check(source, DataConfig.num_threads)
        print("\n".join(report.lines()), flush=True)
        status = EXIT_ERROR if report.unreadable else status
    print("".join(f"{line}\n" for line in differences), end="", flush=True)
    return status


def _add_head_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--num-classes", type=_positive, help="of a new head, where --skip leaves out the old one")
    parser.add_argument("--skip", nargs="+", default=(), metavar="PATTERN", help="names that start anew, e.g. 'fc.*'")


def _convert_arguments(command: Parser) -> None:
    command.add_argument("source", metavar="SRC", help="a weight file, the workdir of a run, or a name on the hub")
    _add_checkpoint_argument(command)
    command.add_argument(
        "target",
        metavar="DST",
        help="a .safetensors, .pth or .pth.tar file, replaced if it is there; or a new directory, a run or timm's",
    )
    command.add_argument(
        "--to",
        metavar="|".join(("ecanet", "torchvision", "timm", "safetensors", "orbax")),
        help="whose form; default: our own file or a run, by the ending of DST",
    )
    command.add_argument("--config", help="--to orbax: the configuration of the run, by its name or as FILE.py")
    _add_head_arguments(command)


def _convert(args: argparse.Namespace) -> int:
    from eca_jax.config import load_config
    from eca_jax.convert.convert import convert

    config = load_config(args.config) if args.config else None
    _start_jax()
    chosen = {"num_classes": args.num_classes, "skip": args.skip, "checkpoint": args.checkpoint}
    print(convert(args.source, args.target, args.to, config=config, **chosen))
    return EXIT_OK


def _export_arguments(command: Parser) -> None:
    command.add_argument("source", metavar="SRC", help="a weight file, the workdir of a run, or a name on the hub")
    _add_checkpoint_argument(command)
    command.add_argument("target", metavar="DST", help="a .stablehlo or .onnx file (replaced if it is there)")
    command.add_argument("--image-size", type=_positive, help="default: what the weights were trained for")
    command.add_argument(
        "--platforms", nargs="+", default=("cpu", "cuda", "tpu"), help="StableHLO: default cpu cuda tpu"
    )


def _export(args: argparse.Namespace) -> int:
    from eca_jax.convert.pretrained import load, own_metadata
    from eca_jax.export import export_onnx, export_stablehlo

    _start_jax()
    loaded = load(args.source, checkpoint=args.checkpoint)  # in float32
    model, about = loaded.model, own_metadata(loaded.model, loaded.class_names, loaded.task)
    size = args.image_size or model.preprocess.image_size
    if args.target.endswith(".stablehlo"):
        export_stablehlo(model, args.target, image_size=size, platforms=args.platforms, about=about)
    elif args.target.endswith(".onnx"):
        export_onnx(model, args.target, image_size=size, about=about)
    else:
        raise EcaJaxError(f"expected a file that ends in .stablehlo or .onnx, got {args.target}")
    images = f"images (b, {size}, {size}, {model.in_channels})"
    print(f"{model.architecture.name}: {images} -> {args.target}, checked against the model")
    return EXIT_OK


def _say_compiling(target: Any) -> None:
    print(f"compiling for {target.describe()}; this can take minutes", file=sys.stderr)


def _precompile_arguments(command: Parser) -> None:
    _add_config_argument(command)
    command.add_argument(
        "--target", required=True, help="chips: v4-8, v5e-8, v5p-64, v6e-256, a100x8, h100x16, h200x8, …"
    )
    command.add_argument("--json", action="store_true", help="print everything as JSON, each collective by itself")
    command.add_argument("--num-classes", type=_positive, help="default: what the data set says")
    command.add_argument("--num-examples", type=_positive, help="of the training split; moves schedules only")


def _precompile(args: argparse.Namespace) -> int:
    import json

    from eca_jax.data.sources import declared_size
    from eca_jax.overrides import overridden
    from eca_jax.precompile.precompile import precompile
    from eca_jax.precompile.report import to_dict, to_table
    from eca_jax.precompile.targets import parse_target

    target = parse_target(args.target)
    config = overridden(
        args.config, args.overrides, prog="eca-jax precompile", description=f"Of {args.config}:", others=args.options
    )
    num_classes, num_examples = declared_size(config.data, args.num_classes, args.num_examples)
    report = precompile(
        config, target, num_classes=num_classes, num_examples=num_examples, started=lambda: _say_compiling(target)
    )
    values = to_dict(report)
    print(json.dumps(values, indent=2) if args.json else to_table(values))
    return EXIT_OK


def _benchmark_arguments(command: Parser) -> None:
    command.add_argument("what", choices=("input",))
    _add_config_argument(command)
    command.add_argument("--seconds", type=_positive, default=10, help="at least, after a warm-up (default: 10)")
    command.add_argument(
        "--target", help="chips, as of `precompile`: compiles the step, and says how many cores it takes to feed them"
    )


def _benchmark(args: argparse.Namespace) -> int:
    from eca_jax.data.sources import declared_size
    from eca_jax.overrides import overridden
    from eca_jax.precompile.precompile import precompile
    from eca_jax.precompile.targets import parse_target
    from eca_jax.training.throughput import measure_throughput

    target = parse_target(args.target) if args.target else None
    config = overridden(
        args.config,
        args.overrides,
        prog="eca-jax benchmark input",
        description=f"Of {args.config}:",
        others=args.options,
    )
    throughput = measure_throughput(config, args.seconds)
    print(throughput.describe(), flush=True)
    if target is not None:
        num_classes, num_examples = declared_size(config.data)
        report = precompile(
            config, target, num_classes=num_classes, num_examples=num_examples, started=lambda: _say_compiling(target)
        )
        per_second = config.batch_size / report.roofline_seconds
        print(throughput.describe_need(target.name, target.chips, per_second))
    return EXIT_OK


def _table_arguments(command: Parser) -> None:
    about = "ECA-Net's table 2 or 3, or that of its poster; complexity: parameters, multiply-adds and activations"
    command.add_argument("which", choices=("2", "3", "poster", "complexity"), help=about)
    group = command.add_argument_group("of complexity")
    about = "names, weight files or workdirs of runs (default: resnet50 se_resnet50 eca_resnet50)"
    group.add_argument("models", nargs="*", metavar="MODEL", help=about)
    group.add_argument("--attention", nargs="+", metavar="KIND", help="every MODEL with each of these attentions")
    group.add_argument("--image-size", type=_positive, metavar="PIXELS", help="of square images (default: 224)")
    group.add_argument("--by-layer", action="store_true", help="a line for each layer of one MODEL")
    about = "default: markdown, or by the ending of --output"
    command.add_argument("--format", choices=("markdown", "latex", "json"), help=about)
    about = "a .md, .tex or .json file, written in place of printing (replaced if it is there)"
    command.add_argument("--output", metavar="FILE", help=about)


def _table(args: argparse.Namespace) -> int:
    from eca_jax.analysis.table import FORMATS, format_of
    from eca_jax.convert.files import check_writable, write

    form = args.format or format_of(args.output)
    if args.output:
        check_writable(args.output)
    text = FORMATS[form](_complexity_table(args) if args.which == "complexity" else _paper_table(args))
    if args.output:
        write(args.output, text.encode())
        print(f"table {args.which} -> {args.output}")
    else:
        print(text, end="")
    return EXIT_OK


def _paper_table(args: argparse.Namespace) -> Any:
    from eca_jax.analysis.paper_tables import TABLES

    given = [*args.models, *(f"--{name}" for name in ("attention", "image-size", "by-layer") if _given(args, name))]
    if given:
        raise EcaJaxError(f"{given[0]}: goes with `table complexity`; table {args.which} has the networks of the paper")
    return TABLES[args.which]()


def _complexity_table(args: argparse.Namespace) -> Any:
    from eca_jax.analysis.complexity_table import DEFAULT, complexity_table, layer_table, networks

    models = networks(args.models or DEFAULT, args.attention or ())
    if not args.by_layer:
        return complexity_table(models, args.image_size or 224)
    if len(models) != 1:
        raise EcaJaxError(f"--by-layer: expected one MODEL and at most one KIND, got {len(models)} networks")
    return layer_table(models[0], args.image_size or 224)


def _given(args: argparse.Namespace, name: str) -> bool:
    return bool(getattr(args, name.replace("-", "_")))


def _add_output_argument(command: Parser, name: str) -> None:
    about = f"files to write, .png, .svg or .pdf (default: {name}.png {name}.svg); the numbers go into a .csv beside"
    command.add_argument("--output", nargs="+", metavar="FILE", default=[f"{name}.png", f"{name}.svg"], help=about)


def _add_images_arguments(command: Parser, images: int, of: str) -> None:
    command.add_argument("--data", help="a TFDS name, or folder:/path; default: the data of the run")
    command.add_argument("--split", help="in TFDS's notation; default: the run's eval_split, or validation or test")
    command.add_argument("--data-dir", help="where TFDS data sets are; default: the run's, or TFDS's own")
    command.add_argument("--images", type=_positive, default=images, help=f"{of} (default: {images})")
    _add_preprocess_arguments(command)


def _kernel_size_arguments(command: Parser) -> None:
    _add_config_argument(command)
    about = "in place of attention.kernel_sizes; 3,5,5,7 is one for each stage (default: 1 3 5 7 9 adaptive released)"
    command.add_argument("--sizes", nargs="+", metavar="SIZE", help=about)
    about = "other attentions to compare with, such as none se"
    command.add_argument("--references", nargs="+", default=(), metavar="KIND", help=about)
    command.add_argument("--seeds", type=_positive, default=3, help="how many, from --seed on (default: 3)")
    about = "of each run: after the last step, or of the best checkpoint (default: last)"
    command.add_argument("--score", choices=("last", "best"), default="last", help=about)
    about = "has a directory for each run (default: the configuration's, with -kernel-size)"
    command.add_argument("--workdir", metavar="DIR", help=about)
    _add_output_argument(command, "kernel-size")


def _kernel_size(args: argparse.Namespace) -> int:
    from eca_jax.analysis.kernel_sizes import SIZES, Scored, parse_size, plan, run_trials, summarise, to_rows, to_table
    from eca_jax.overrides import overridden
    from eca_jax.plots.files import check_outputs, write_figure
    from eca_jax.plots.kernel_size import MEASURES, kernel_size_figure

    about = f"Of {args.config}:"
    config = overridden(
        args.config, args.overrides, prog="eca-jax figure kernel-size", description=about, others=args.options
    )
    check_outputs(args.output)
    sizes = [parse_size(size) for size in args.sizes] if args.sizes else SIZES
    root = args.workdir or f"{config.workdir}-kernel-size"
    trials, scored = plan(config, sizes, args.references, args.seeds, root), []
    _start_jax()
    for outcome in run_trials(trials):
        if not isinstance(outcome, Scored):
            return _stopped(outcome, print)
        scored.append(outcome)
    name = config.task.best
    measure, scale = MEASURES.get(name, (name, 1.0))
    points, measure = summarise(scored, args.score), f"{args.score} held-out {measure}"
    print(to_table(points, measure, scale).to_markdown())
    figure = kernel_size_figure(points, measure, scale=scale)
    print(f"wrote {', '.join(write_figure(figure, to_rows(scored), args.output))}")
    return EXIT_OK


def _channel_weights_arguments(command: Parser) -> None:
    about = f"workdirs of training runs (default: {DEFAULT_RUN}, where there are no --weights)"
    command.add_argument("--run", nargs="+", default=(), metavar="RUN", help=about)
    _add_checkpoint_argument(command)
    about = "weight files, or names on the Hugging Face hub, beside the runs"
    command.add_argument("--weights", nargs="+", default=(), metavar="FILE", help=about)
    command.add_argument("--titles", nargs="+", metavar="TITLE", help="of the networks, the runs first; default: names")
    about = "by name or number, at most 8 (default: the first four)"
    command.add_argument("--classes", nargs="+", metavar="CLASS", help=about)
    about = "such as layer1.0 layer4.2 (default: four that all networks have, from the first to the last)"
    command.add_argument("--blocks", nargs="+", metavar="BLOCK", help=about)
    about = "of each block, such as 0:100 (default: all)"
    command.add_argument("--channels", type=_steps, metavar="START:STOP", help=about)
    _add_images_arguments(command, 50, "of each class")
    _add_output_argument(command, "channel-weights")


def _channel_weights(args: argparse.Namespace) -> int:
    from eca_jax.analysis.images import class_weights, load_network, to_rows
    from eca_jax.plots.channel_weights import channel_weights_figure, expect_classes
    from eca_jax.plots.files import check_outputs, write_figure

    runs = args.run or ([] if args.weights else [DEFAULT_RUN])
    check_outputs(args.output)
    count = len({*runs, *args.weights})
    if args.titles and len(args.titles) != count:
        raise EcaJaxError(f"--titles: expected one for each of {count} networks, got {len(args.titles)}")
    expect_classes(args.classes or ())
    _start_jax()
    networks = {run: load_network(run, is_run=True, checkpoint=args.checkpoint) for run in runs}
    networks |= {weights: load_network(weights, is_run=False) for weights in args.weights}
    found = class_weights(
        networks,
        classes=args.classes,
        blocks=args.blocks,
        images=args.images,
        where=(args.data, args.split, args.data_dir),
        preprocess=_preprocess_changes(args),
    )
    titled = dict(zip(args.titles or found.means, found.means.values(), strict=True))
    figure = channel_weights_figure(titled, found.blocks, found.class_names, args.channels)
    print(found.describe())
    print(f"wrote {', '.join(write_figure(figure, to_rows(found), args.output))}")
    return EXIT_OK


def _gates_arguments(command: Parser) -> None:
    _add_run_arguments(command)
    _add_weights_arguments(command)
    _add_images_arguments(command, 512, "evenly spaced over the split")
    _add_output_argument(command, "gates")


def _gates(args: argparse.Namespace) -> int:
    from eca_jax.analysis.gates import gate_statistics, to_rows, to_table
    from eca_jax.analysis.images import evenly_spaced, gates_of_records, load_network, open_images
    from eca_jax.plots.files import check_outputs, write_figure
    from eca_jax.plots.gates import gates_figure

    _check_weights_arguments(args)
    check_outputs(args.output)
    _start_jax()
    weights, checkpoint = args.weights or args.run, None if args.weights else args.checkpoint
    loaded = load_network(weights, is_run=not args.weights, name=args.model, checkpoint=checkpoint)
    source = open_images(loaded, weights, args.data, args.split, args.data_dir)
    task = loaded.task.with_preprocess(_preprocess_changes(args))
    _say_preprocess(loaded.describe_preprocess(task.preprocess))
    records = evenly_spaced(args.images, len(source))
    gates = gates_of_records(loaded, task, source, records)
    blocks = {name: gate_statistics(gate) for name, gate in gates.items()}
    title = f"Gates of {weights} on {len(records)} images of {source.name!r}, split {source.split!r}"
    print(to_table(blocks, title).to_markdown())
    print(f"wrote {', '.join(write_figure(gates_figure(blocks), to_rows(blocks), args.output))}")
    return EXIT_OK


COMMANDS = {
    "evaluate": Command("score a checkpoint of a run, or weights, on held-out data", _evaluate_arguments, _evaluate),
    "predict": Command("print what a model says of image files", _predict_arguments, _predict),
    "prepare": Command("download a TFDS data set and write it as ArrayRecord, once", _prepare_arguments, _prepare),
    "check": Command("read every image of a data set, and name those that cannot be read", _check_arguments, _check),
    "convert": Command("write weights in another framework's form", _convert_arguments, _convert),
    "export": Command("write a model as StableHLO or ONNX, checked against the model", _export_arguments, _export),
    "precompile": Command(
        "compile a configuration's training step for hardware that is not here: memory, time, communication",
        _precompile_arguments,
        _precompile,
        fields="--model.dtype bfloat16",
    ),
    "benchmark": Command(
        "measure on this machine: `benchmark input`, the images/s of a configuration's data path",
        _benchmark_arguments,
        _benchmark,
        fields="--data.num-threads 2",
    ),
    "table": Command("print ECA-Net's tables with what this package computes beside them", _table_arguments, _table),
    "figure kernel-size": Command(
        "train with several of ECA's kernel sizes, and draw the held-out score against them (the paper's Figure 4)",
        _kernel_size_arguments,
        _kernel_size,
        fields="--epochs 10",
    ),
    "figure channel-weights": Command(
        "draw the mean channel weights of several classes, of any networks side by side (the paper's appendix)",
        _channel_weights_arguments,
        _channel_weights,
    ),
    "figure gates": Command(
        "say whether gates are stuck at 0.5, at 0 or at 1, or the same for every image, and draw it",
        _gates_arguments,
        _gates,
    ),
}
"""The commands beside train, in the order in which --help lists them. Those of a group have its name before theirs."""
GROUPS = {"figure": "draw a figure for a paper: kernel-size, channel-weights or gates (needs the extra `plots`)"}
