"""The command line. Exit status 0; 2 with one sentence on stderr for a user's mistake; 1 for a defect; 130 for Ctrl-C.

Nothing is imported before a command needs it: torch and Qt take seconds, and even the settings delay the window.
"""

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from moeviz.bench import BENCHES
from moeviz.domain.errors import SettingsError, UserError

if TYPE_CHECKING:
    from moeviz.domain.routing import RoutingSnapshot
    from moeviz.domain.settings import Settings

PROGRAM = "moeviz"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of printing the usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message[:1].upper()}{message[1:]}; see `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if arguments and arguments[0] in COMMANDS:
            parser, run = _command_parser(arguments[0])
            return run(parser.parse_args(arguments[1:]))
        return _window(_window_parser().parse_args(arguments))
    except (UserError, SettingsError) as error:
        print(f"{PROGRAM}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{PROGRAM}: Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # whoever reads the output has seen enough; Python would complain once more at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


# ---- the window
def _window_parser() -> argparse.ArgumentParser:
    lines = "\n".join(f"  {name:<12}{about}" for name, (about, _, _) in COMMANDS.items())
    parser = Parser(
        PROGRAM,
        description="Opens the window, which shows where every token goes inside a Mixture-of-Experts model, live.",
        epilog=f"commands:\n{lines}\n\n`{PROGRAM} COMMAND --help` explains one of them.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="*", metavar="PATH", help="a trace, a model, a settings file, or texts")
    parser.add_argument("--task", help="what to train; `moeviz tasks` lists them")
    parser.add_argument("--settings", metavar="FILE", help="a settings file")
    _add_device(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="fixes the start weights, the batches and the noise")
    parser.add_argument("--version", action="store_true", help="tell the version")
    return parser


def _window(args: argparse.Namespace) -> int:
    if args.version:
        from importlib.metadata import version

        print(PROGRAM, version("moeviz"))
        return 0
    for path in args.paths:
        if not Path(path).exists():
            import difflib

            meant = difflib.get_close_matches(path, COMMANDS, 1)
            hint = f"perhaps the command {meant[0]!r} is meant." if meant else "check the path."
            raise UserError(f"There is no file or folder {path!r}; {hint}")
    if args.settings or args.task is not None or args.seed is not None:
        from moeviz.domain.settings import Settings

        # what cannot be used is told here, before a window opens
        settings = Settings.read(args.settings) if args.settings else Settings()
        asked = {"task": args.task, "seed": args.seed}
        settings.with_values({key: value for key, value in asked.items() if value is not None})
    _find_display()
    from moeviz.start import run_window

    options: dict[str, Any] = {"task": args.task, "settings_file": args.settings, "seed": args.seed}
    return run_window(args.paths, device=args.device, **options)


def _find_display() -> None:
    """Qt would end the program with a text of its own where it finds no display."""
    if not sys.platform.startswith("linux"):
        return
    needed = {"xcb": "DISPLAY", "wayland": "WAYLAND_DISPLAY", "wayland-egl": "WAYLAND_DISPLAY"}
    # as in "wayland;xcb" or "xcb:option": the first that can be used is used
    names = [part.split(":")[0] for part in (os.environ.get("QT_QPA_PLATFORM") or "wayland;xcb").split(";")]
    if any(name not in needed for name in names):
        return
    displays = [(needed[name], os.environ.get(needed[name], "")) for name in names]
    if any(_answers(variable, display) for variable, display in displays if display):
        return
    silent = " and ".join(display for _, display in displays if display)
    what = f"No display answers at {silent}" if silent else "There is no display to open a window on"
    raise UserError(f"{what}; use `moeviz render` to write pictures without one.")


def _answers(variable: str, display: str) -> bool:
    """Whether somebody listens at the socket that the variable names."""
    import socket

    try:
        for address in _addresses(variable, display):
            with socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET) as one:
                one.settimeout(2)
                if one.connect_ex(address) == 0:
                    return True
    except (OSError, ValueError):  # no such host; no such way to name a display
        pass
    return False


def _addresses(variable: str, display: str) -> list[str | tuple[str, int]]:
    if variable == "WAYLAND_DISPLAY":
        return [os.path.join(os.environ.get("XDG_RUNTIME_DIR", ""), display)]
    host, _, number = display.rpartition("/")[2].rpartition(":")
    screen = int(number.partition(".")[0])
    if host not in ("", "unix"):
        return [(host, 6000 + screen)]
    path = f"/tmp/.X11-unix/X{screen}"
    return ["\0" + path, path]  # on Linux without a file, too


# ---- commands
def _train_options(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser)
    parser.add_argument("--steps", type=_positive, required=True, metavar="N", help="how many steps to train")
    parser.add_argument("--out", required=True, metavar="DIR", help="gets model, trace, settings and metrics")
    parser.add_argument("--force", action="store_true", help="replace the results of an earlier run in DIR")
    _add_json(parser)


def _train(args: argparse.Namespace) -> int:
    settings = _settings(args)
    from moeviz.headless import train

    with _Files():
        result = train(settings, args.steps, Path(args.out), device=args.device, force=args.force)
    if args.json:
        _print_json(result)
    else:
        losses = ", ".join(f"{name} {result[name]:.3g}" for name in ("loss", "heldout") if name in result)
        losses += f" of step {result['heldout_step']}" if "heldout_step" in result else ""
        rate = f"{result['steps_per_second']:.3g} steps/s"
        if result["baseline"]:
            pairs = (f"{name} {result[name]:.3g} ({value:.3g})" for name, value in result["baseline"].items())
            print(f"held-out, and by the most frequent answer: {', '.join(pairs)}")
        print(f"{result['steps']} steps at {rate}, {losses}; model, trace, settings and metrics are in {args.out}")
    return 130 if result["interrupted"] else 0


def _inspect_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a checkpoint, or the folder that `moeviz train` wrote")
    _add_text(parser, required=True)
    parser.add_argument("--out", required=True, metavar="TRACE", help="the trace to write; it must not exist yet")
    parser.add_argument(
        "--generate", type=_positive, default=0, metavar="N", help="let the model go on for N characters"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="fixes what is generated")
    _add_set(parser)
    _add_device(parser)
    _add_json(parser)


def _inspect(args: argparse.Namespace) -> int:
    text, changes = _text(args) or "", _changes(args)
    from moeviz.headless import inspect

    options: dict[str, Any] = {"generate": args.generate, "device": args.device, "seed": args.seed}
    with _Files():
        result = inspect(args.model, text, Path(args.out), changes=changes, **options)
    if args.json:
        _print_json(result)
    else:
        print(f"{result['tokens']} tokens through {len(result['layers'])} MoE layers, recorded in {args.out}")
        if args.generate:
            print(result["text"])
    return 0


def _render_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", required=True, metavar="FILE", help="its ending says png, svg, pdf or csv")
    _add_settings(parser)
    parser.add_argument("--steps", type=_positive, metavar="N", help="with --task: train N steps first (default 100)")
    parser.add_argument("--trace", metavar="PATH", help="show a recorded run")
    parser.add_argument("--step", type=int, metavar="N", help="with --trace: its N-th recorded step, -1 is the last")
    parser.add_argument("--model", metavar="PATH", help="show a checkpoint, on --text or on its task's own probe")
    _add_text(parser, required=False)
    parser.add_argument("--plot", default="dashboard", metavar="NAME", help="`moeviz plots` lists them")
    parser.add_argument("--layer", type=int, default=0, metavar="N", help="the layer that is shown (default 0)")
    parser.add_argument("--token", type=int, metavar="N", help="the token that is selected")
    against = parser.add_argument_group("with --plot compare: what to compare with (--against-layer goes with any)")
    against.add_argument(
        "--against", default="", metavar="PATH", help="another trace, or a model, which reads the text"
    )
    against.add_argument(
        "--against-step", type=int, metavar="N", help="the N-th recorded step of a trace, or a kept step of training"
    )
    against.add_argument("--against-layer", type=int, metavar="N", help="another layer")
    against.add_argument("--against-text", default="", metavar="TEXT", help="another text")
    parser.add_argument("--theme", default="dark", choices=("dark", "light"))
    parser.add_argument("--size", type=_size, default=(1440, 900), metavar="WxH", help="in pixels (default 1440x900)")
    sharper = parser.add_mutually_exclusive_group()
    sharper.add_argument("--scale", type=_scale, metavar="X", help="of a png: X times as many pixels, 0.5 to 8")
    sharper.add_argument(
        "--dpi", type=_dpi, dest="scale", metavar="N", help="the same as --scale N/96, as in --dpi 300"
    )


def _render(args: argparse.Namespace) -> int:
    if sum(map(bool, (args.task or args.settings, args.trace, args.model))) != 1:
        raise UserError("Say what to show with one of --task (or --settings), --trace and --model.")
    elsewhere = args.against or args.against_text
    compared = elsewhere or args.against_step is not None or args.against_layer is not None
    for needs, option, value in (
        ("--plot compare", "An option --against…", compared and args.plot != "compare"),
        ("--task or --model", "--against-text", args.against_text and args.trace),
        ("--task or a trace", "--against-step", args.against_step is not None and args.model and not elsewhere),
        ("--trace", "--step", args.step is not None and not args.trace),
        ("--task", "--steps", args.steps is not None and not (args.task or args.settings)),
        ("--model", "--text and --file", (args.text is not None or args.file) and not args.model),
        ("--task or --model", "--set", args.changes and args.trace),
        ("a .png", "--scale (or --dpi)", args.scale is not None and Path(args.out).suffix.lower() != ".png"),
    ):
        if value:
            raise UserError(f"{option} needs {needs}.")
    if args.plot == "compare":
        _check_against(args, bool(compared))
    # a wrong plot, ending or size is told before anything is trained
    from moeviz.view.catalogue import BY_NAME, FILM, PLOTS

    names = ["dashboard", *(plot.name for plot in PLOTS if plot.name != "dashboard")]
    if args.plot not in names:
        raise UserError(f"There is no plot {args.plot!r}; choose one of {', '.join(names)}.")
    if Path(args.out).suffix.lower() not in (".png", ".svg", ".pdf", ".csv"):
        raise UserError(f"{args.out} must end in .png, .svg, .pdf or .csv.")
    if not Path(args.out).absolute().parent.is_dir():
        raise UserError(f"There is no folder {Path(args.out).parent}; make it first.")
    from moeviz.view.render import check_place, check_size, render_plot

    look: dict[str, Any] = {"theme": args.theme, "size": args.size, "layer": args.layer, "token": args.token}
    look["scale"] = args.scale or 1.0
    check_size(args.size, look["scale"])

    from moeviz import headless

    plot = BY_NAME[args.plot]
    side: dict[str, Any] = {"path": args.against, "step": args.against_step, "layer": args.against_layer}
    steps = args.steps or 100

    def check(task: str, first: "RoutingSnapshot") -> None:
        """What is not there is told before anything is trained."""
        check_place(first, args.layer, args.token)
        if compared:
            headless.check_reference(first, steps, task, **side)

    with _Files():
        if args.trace:
            seen = headless.of_trace(args.trace, -1 if args.step is None else args.step, film=FILM in plot.needs)
        elif args.model:
            of_model: dict[str, Any] = {"changes": _changes(args), "device": args.device, "survey": plot.surveys}
            seen = headless.of_checkpoint(args.model, _text(args), **of_model, read=args.against_text)
        else:
            settings = _settings(args)
            of_run: dict[str, Any] = {"survey": plot.surveys, "read": args.against_text}
            of_run["check"] = partial(check, settings.task)
            if args.plot == "moe_dense" and settings.train.dense_twin == "off":
                raise UserError("The plot moe_dense needs a dense twin; add --set train.dense_twin=on.")
            seen = headless.of_training(settings, steps, args.device, **of_run)
        other = headless.reference(seen, **side, trace=args.trace or "") if compared else None
        data: dict[str, Any] = {"snapshot": seen.snapshot, "history": seen.history, "survey": seen.survey}
        render_plot(args.out, plot=args.plot, **data, reference=other, **look)
    print(args.out)
    return 130 if seen.interrupted else 0


def _check_against(args: argparse.Namespace, compared: bool) -> None:
    """What is compared, before anything is trained."""
    if not compared:
        raise UserError(
            "Say what to compare with: --against PATH, --against-step N, --against-layer N or --against-text TEXT."
        )
    if args.against_text and (args.against or args.against_step is not None):
        raise UserError("Give one of --against, --against-step and --against-text; the text is read by what is shown.")
    if args.against and not Path(args.against).exists():
        raise UserError(f"There is no file or folder {args.against}; check the path.")


def _plots(args: argparse.Namespace) -> int:
    from moeviz.view.catalogue import PLOTS

    if args.json:
        _print_json({"plots": [{"name": p.name, "title": p.title, "needs": list(p.needs)} for p in PLOTS]})
    else:
        for plot in PLOTS:
            print(f"{plot.name:<18} {plot.title}; needs {', '.join(plot.needs) or 'nothing'}")
    return 0


def _tasks(args: argparse.Namespace) -> int:
    from moeviz.moe.tasks import TASKS

    if args.json:
        _print_json({"tasks": [{"name": name, "data": data} for name, data in TASKS.items()]})
    else:
        for name, data in TASKS.items():
            print(f"{name:<14} {data}")
    return 0


def _stats_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("trace", metavar="TRACE", help="a trace that moeviz wrote")
    parser.add_argument(
        "--step", type=int, default=-1, metavar="N", help="the N-th recorded step; negative counts from the end"
    )
    _add_json(parser)


def _stats(args: argparse.Namespace) -> int:
    from moeviz.trace.report import report
    from moeviz.trace.stats import stats
    from moeviz.trace.store import open_trace

    result = stats(open_trace(args.trace), args.step)
    if args.json:
        _print_json(result)
        return 0
    print("\n".join(report(result)))
    return 0


def _experiment_options(parser: argparse.ArgumentParser) -> None:
    from moeviz.domain.experiments import EXPERIMENTS

    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="one of " + ", ".join(EXPERIMENTS) + "; none: list them"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="fixes the start weights, batches and noise")
    _add_json(parser)


def _experiment(args: argparse.Namespace) -> int:
    from moeviz.experiments import run, show

    return show(args.json) if args.name is None else run(args.name, args.seed, args.json)


def _bench_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", choices=BENCHES, help="one of " + ", ".join(BENCHES))
    _add_json(parser)


def _bench(args: argparse.Namespace) -> int:
    from moeviz.bench import run

    return run(args.name, args.json)


Run = Callable[[argparse.Namespace], int]
COMMANDS: dict[str, tuple[str, Callable[[argparse.ArgumentParser], None], Run]] = {
    "train": ("trains without a window, into a folder", _train_options, _train),
    "inspect": ("records the routing of a checkpoint on a text", _inspect_options, _inspect),
    "render": ("writes a picture without a display", _render_options, _render),
    "stats": ("tells every measure of a trace, by layer", _stats_options, _stats),
    "plots": ("names every plot and what data it needs", lambda parser: _add_json(parser), _plots),
    "tasks": ("names every task and its data", lambda parser: _add_json(parser), _tasks),
    "experiment": ("measures a published phenomenon on small models", _experiment_options, _experiment),
    "bench": ("measures moeviz itself", _bench_options, _bench),
}


def _command_parser(name: str) -> tuple[argparse.ArgumentParser, Run]:
    about, add_options, run = COMMANDS[name]
    parser = Parser(f"{PROGRAM} {name}", description=f"{about[:1].upper()}{about[1:]}.", allow_abbrev=False)
    add_options(parser)
    return parser, run


# ---- options that several commands have
def _add_settings(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--task", help="what to train; `moeviz tasks` lists them")
    parser.add_argument("--settings", metavar="FILE", help="a settings file; the other options change it")
    _add_set(parser)
    _add_device(parser)
    parser.add_argument("--seed", type=int, metavar="N", help="fixes the start weights, the batches and the noise")


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set", dest="changes", action="append", default=[], metavar="KEY=VALUE", help="e.g. routing.k=2; repeatable"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:N or mps")


def _add_text(parser: argparse.ArgumentParser, *, required: bool) -> None:
    group = parser.add_mutually_exclusive_group(required=required)
    group.add_argument("--text", help="the text itself")
    group.add_argument("--file", metavar="FILE", help="a text file")


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")


def _settings(args: argparse.Namespace) -> "Settings":
    from moeviz.domain.settings import Settings

    settings = Settings.read(args.settings) if args.settings else Settings()
    values: dict[str, Any] = {} if args.task is None else {"task": args.task}
    values |= _changes(args)
    if args.seed is not None:
        values["seed"] = args.seed
    return settings.with_values(values)


def _changes(args: argparse.Namespace) -> dict[str, str]:
    values: dict[str, str] = {}
    for change in args.changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise UserError(f"--set {change} has no value; write --set KEY=VALUE, as in --set routing.k=2.")
        values[key.strip()] = value.strip()
    return values


def _text(args: argparse.Namespace) -> str | None:
    """What --text or --file gives; None without either."""
    if args.file is None:
        text: str | None = args.text
        return text
    from moeviz.moe.tasks.own import UnusableError, read_text

    try:
        return read_text(Path(args.file))[0]
    except UnusableError as error:
        raise UserError(f"{args.file} {error}; give a text file in UTF-8.") from None
    except OSError as error:
        raise UserError(f"The text {args.file} cannot be read: {error.strerror or error}.") from None


def _positive(text: str) -> int:
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is too small, it must be 1 or more")
    return number


def _size(text: str) -> tuple[int, int]:
    try:
        width, height = map(int, text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no size, write it as in 1440x900") from None
    return width, height


def _scale(text: str, unit: float = 1.0) -> float:
    try:
        scale = float(text) / unit
    except ValueError:
        scale = 0.0
    if not 0.5 <= scale <= 8:
        raise argparse.ArgumentTypeError(f"{text!r} is not possible, give {0.5 * unit:g} to {8 * unit:g}")
    return scale


def _dpi(text: str) -> float:
    return _scale(text, 96.0)


class _Files:
    """A disk that refuses is the user's to mend: one sentence, not a traceback."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            what = f"{error.filename} cannot be used" if error.filename is not None else "Writing failed"
            raise UserError(f"{what}: {error.strerror or error}.") from None


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, allow_nan=False))


if __name__ == "__main__":
    sys.exit(main())
