"""The command line: the roof over everything. Here errors become exit codes; a verb is a file in this folder.

Nothing here imports numpy before there is something to say, nor torch before a verb computes: ``--help`` and usage
errors answer at once.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from convsv import __version__
from convsv.cli._cache import cache
from convsv.cli._groups import VERBS, flattened
from convsv.cli._screen import Screen, close_standard_output, exit_code, occupy_standard_streams

__all__ = ["app", "main"]

# The class of what typer raises for wrong options; the library it vendors has no public name.
_OptionError: type[Exception] = typer.BadParameter.__mro__[1]


class Program(TyperGroup):
    """The commands, with every error as one line on standard error and an exit code of the contract."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run a command line and exit.

        Raises:
            SystemExit: always, with the exit code.
        """
        occupy_standard_streams()
        given = list(sys.argv[1:] if args is None else args)
        verbose = not {"-v", "--verbose"}.isdisjoint(given[: given.index("--")] if "--" in given else given)
        _no_forced_colour()
        try:
            code = super().main(given, prog_name or "convsv", complete_var, False, windows_expand_args, **extra)
            sys.stdout.flush()
        except _OptionError as error:
            code = _usage(error)
        except SystemExit as error:
            code = 0 if _is_closed_pipe(error.__context__) else error.code
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - whatever it is becomes one line and a code
            code = _failed(error, verbose=verbose)
        sys.exit(code if isinstance(code, int) else 0)


def _usage(error: Exception) -> int:
    """Say on one line what is wrong with the options."""
    text = " ".join(str(getattr(error, "format_message", error.__str__)()).split()).replace("Value error, ", "")
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return 2
    advice = f"; see {context.command_path} --help" if context else ""
    Screen().error(error, text.rstrip(".") + advice)
    return 2


def _failed(error: BaseException, *, verbose: bool) -> int:
    if _is_closed_pipe(error):
        close_standard_output()
        return 0
    if isinstance(error, KeyboardInterrupt):
        Screen().error(error, "interrupted")
        return 130
    Screen(verbose=verbose).error(error)
    if isinstance(error, OSError):
        close_standard_output()  # what it still holds would fail again at exit
    return exit_code(error)


def _is_closed_pipe(error: BaseException | None) -> bool:
    return isinstance(error, BrokenPipeError)


def _no_forced_colour() -> None:
    """Keep typer from colouring help in a pipe, which it does in some CI systems."""
    if not sys.stdout.isatty() and os.environ.get("FORCE_COLOR", "0") == "0":
        os.environ.setdefault("_TYPER_FORCE_DISABLE_TERMINAL", "1")


app = typer.Typer(
    cls=Program,
    name="convsv",
    help="How much does each convolution of a trained network stretch its input? Certified norms and singular values, "
    "from checkpoint files of PyTorch, safetensors, Keras and ONNX.",
    epilog="Example: convsv analyze model.pt",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"convsv {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Nothing to do before a verb."""


for _name, _verb in sorted(VERBS.items(), key=lambda item: item[1].rank):
    app.command(_name, epilog=f"Example: {_verb.example}")(flattened(_verb.function))

app.add_typer(cache, name="cache")


def main() -> None:
    """Run the program with the arguments it was called with.

    Raises:
        SystemExit: always, with an exit code of the contract.
    """
    app(prog_name="convsv")
