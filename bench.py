#!/usr/bin/env python3
"""DFKD suite: data-free knowledge distillation methods side by side.

python bench.py --method ssdkd --data digits   run a method, update the tables
python bench.py VERB --help                    options of a verb
"""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from collections.abc import Callable
from typing import NoReturn

if __name__ == "__main__" and signal.getsignal(signal.SIGTERM) != signal.SIG_IGN:
    for number in (signal.SIGINT, signal.SIGTERM):  # until all is imported: nobody wants to see where that was
        signal.signal(number, lambda *_: os._exit(75))  # EXIT_PARTIAL, nothing is lost

from tabulate import tabulate

from dfkd import __version__, paths, streams
from dfkd.errors import UserError, one_line, shown, unknown
from dfkd.names import check_name, device, minutes, network_name, option, path, several, whole
from dfkd.signals import EXIT_PARTIAL, Stopped, stopping
from dfkd.tables import costs, planning
from dfkd.tables.definition import MEANINGS, PRECISIONS, datasets
from dfkd.tables.pipeline import PIPELINES, write_inputs, write_maps
from dfkd.tasks import POOLS, TASKS, prepare
from dfkd.tasks.store import data_root

EXAMPLES = """examples:
  python bench.py --method ssdkd --data cifar10 --pair wrn40_2-wrn16_1
  python bench.py --method fast-5,ssdkd --data digits --seed 0,1,2
"""


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, and not the whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


READERS: tuple[Callable[[str], object], ...] = (check_name, network_name, path, whole, device, minutes)
NAME, NETWORK, PATH, WHOLE, DEVICE, MINUTES = map(option, READERS)
NAMES, WHOLES = map(option, (several(check_name), several(whole)))


def task_options(group: argparse._ActionsContainer) -> None:
    """What names a table."""
    group.add_argument("--data", type=NAME, required=True, help="a data set (`list`)")
    group.add_argument("--protocol", type=NAME, help=f"{', '.join(MEANINGS)} (default: what fits)")


def cell_options(group: argparse._ActionsContainer, methods: Callable[[str], object], text: str) -> None:
    """What names a row of a table, or several."""
    group.add_argument("--method", type=methods, required=True, help=text)
    task_options(group)
    group.add_argument("--pair", type=NETWORK, metavar="T-S", help="teacher and student (default: the table's first)")


def device_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("--device", type=DEVICE, help="cpu, cuda, cuda:1 (default: CUDA if present)")


def data_root_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("--data-root", type=PATH, metavar="DIR", help="of the data sets (default: DFKD_DATA or a cache)")


def change_option(group: argparse._ActionsContainer, text: str) -> None:
    group.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="changes", help=text)


def import_option(group: argparse._ActionsContainer) -> None:
    group.add_argument("--import", dest="extra", metavar="FILE", help="a method from outside, a file or module")


def training_options(verb: argparse.ArgumentParser) -> None:
    """What run, teacher and prior share: where they happen, and for how long."""
    where = verb.add_argument_group("where and how long")
    device_option(where)
    data_root_option(where)
    where.add_argument("--weights", type=PATH, metavar="DIR", help="of ready teachers, priors (DFKD_WEIGHTS)")
    where.add_argument("--resume", action="store_true", help="continue from the saved state")
    where.add_argument("--time-limit", type=MINUTES, metavar="MINUTES", help="save the state and stop after so long")


def run_options(verb: argparse.ArgumentParser) -> None:
    verb.usage, verb.epilog = "bench.py run --method METHOD --data DATA [options]", EXAMPLES
    verb.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=28)
    what = verb.add_argument_group("what to run")
    cell_options(what, NAMES, "recipes or methods (`list`), with commas")
    what.add_argument("--seed", type=WHOLES, default=[0], help="repetitions, with commas (default 0)")
    import_option(what)
    what.add_argument("--again", action="store_true", help="anew, also a finished or stopped run")
    what.add_argument("--jobs", type=WHOLE, default=1, metavar="N", help="of several runs N at a time, sharing threads")
    custom = verb.add_argument_group("custom runs, left out of the tables")
    change_option(custom, "change a hyper-parameter (docs/protocol.md)")
    text = f"{', '.join(PRECISIONS)}; no custom run where it is auto"
    custom.add_argument("--precision", choices=PRECISIONS, metavar="NAME", help=text)
    custom.add_argument("--teacher-weights", type=PATH, metavar="FILE", help="your own checkpoint")
    custom.add_argument("--compile", action="store_true", help="the networks of a student step")
    out = verb.add_argument_group("output")
    out.add_argument("--out", type=PATH, help="folder of the record (default: results/records)")
    out.add_argument("--tensorboard", action="store_true", help="write curves for TensorBoard")
    out.add_argument("--dry-run", action="store_true", help="print the configuration as YAML, run nothing")
    training_options(verb)
    verb.add_argument("--patience", type=MINUTES, default=30, metavar="MINUTES", help="without a message (default 30)")
    verb.add_argument("--debug", action="store_true", help="in one process, without a record")


def do_run(options: argparse.Namespace) -> int:
    from dfkd import session

    chosen = session.chosen(options)
    if options.dry_run:
        print("".join(resolved.document() for resolved in chosen), end="")
        return 0
    if len(chosen) > 1:
        return session.execute_each(chosen, [sys.executable, __file__, *options.arguments], options)
    try:
        with stopping(lambda reason: sys.exit(fail(Stopped(reason), EXIT_PARTIAL))):
            record = session.execute(chosen[0], options)
    except UserError:
        raise
    except Exception as error:
        session.tell_traceback(error)
        return fail(error, 1)
    return EXIT_PARTIAL if record and record["status"] == "partial" else 0


def data_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("name", type=NAME, help=f"one of: {', '.join((*TASKS, *POOLS))}")
    text = "convert local files, such as the official .mat of nyuv2 or a folder of its images and 13-class labels"
    verb.add_argument("--from", dest="source", type=PATH, metavar="PATH", help=text)
    verb.add_argument("--manifest", type=PATH, help="also copy the manifest there")
    data_root_option(verb)


def do_data(options: argparse.Namespace) -> int:
    print(prepare(options.name, data_root(options.data_root), options.source, options.manifest)[1])
    return 0


def teacher_options(verb: argparse.ArgumentParser) -> None:
    task_options(verb)
    verb.add_argument("--arch", type=NETWORK, required=True, help="network, such as wrn40_2 or torchvision/resnet34")
    verb.add_argument("--seed", type=WHOLE, default=0, help="seed of its first weights and batches (default 0)")
    training_options(verb)


def prior_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=NAME, required=True, help=f"images that it is trained on: {', '.join(POOLS)}")
    verb.add_argument("--size", type=WHOLE, required=True, help="side of its images, in pixels")
    verb.add_argument("--name", type=NAME, help="default: that of the images and the size, such as public32")
    change_option(verb, "change its recipe (benchmarks/priors.yaml); the prior then needs a --name of its own")
    training_options(verb)


def do_list(options: argparse.Namespace) -> int:
    from dfkd.report import current

    done, problems = current.finished()
    for headers, rows in planning.listing(done, options.extra):
        print(tabulate(rows, headers=headers, tablefmt="simple"), end="\n\n")
    return fail_each(problems)


def plan_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=NAME, help=f"only this data set: {', '.join(datasets())}")
    verb.add_argument("--protocol", type=NAME, help=f"only this protocol: {', '.join(MEANINGS)}")
    text = "every N-th run from the I-th (1-based), for job arrays; of commands that need the same teacher one makes it"
    verb.add_argument("--shard", metavar="I/N", help=text)
    verb.add_argument("--device", metavar="NAME", help="to predict times on (default: that measured here last)")
    text = "measure this machine first, as a run does once for its networks: some seconds for each pair"
    verb.add_argument("--measure", action="store_true", help=text)
    pipeline = verb.add_argument_group("for DVC").add_mutually_exclusive_group()
    text = "write benchmarks/pipeline/*.yaml, the maps over which the stages of dvc.yaml run"
    pipeline.add_argument("--pipeline", action="store_true", help=text)
    text = f"write what each stage depends on to work/inputs, for the pipeline {' or '.join(PIPELINES)}"
    pipeline.add_argument("--inputs", choices=tuple(PIPELINES), help=text)


def do_plan(options: argparse.Namespace) -> int:
    if options.pipeline or options.inputs:
        for written in write_maps() if options.pipeline else [write_inputs(options.inputs)]:
            print(f"wrote {written.relative_to(paths.ROOT)}")
        return 0
    from dfkd.report import current

    done, problems = current.finished()
    runs = planning.missing(done, options.data, options.protocol)[planning.shard(options.shard)]
    if options.measure:
        from dfkd.engine import throughput

        throughput.measure(runs)
    device, speeds = costs.device(options.device)
    plan = planning.planned(runs, speeds)
    print(*plan, sep="\n", end="\n" if plan else "")
    print(planning.summary(plan, len(runs), device), file=sys.stderr)
    return fail_each(problems)


def leaderboard_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--data", type=NAME, help="only the table of this data set")
    verb.add_argument("--protocol", type=NAME, help="with --format: only the tables of this protocol")
    instead = verb.add_mutually_exclusive_group()
    instead.add_argument("--format", choices=("csv", "latex"), help="print tables, write nothing; latex with BibTeX")
    instead.add_argument("--committed", action="store_true", help="show quick records beside the committed ones")
    instead.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")


def do_leaderboard(options: argparse.Namespace) -> int:
    from dfkd import report
    from dfkd.report.commit import compare_with_commit

    if options.committed:
        return fail_each(compare_with_commit(options.data))
    said, problems = report.told(options.data, options.protocol, options.format, options.check)
    for line in said:
        print(line)
    return fail_each(problems) or (1 if options.check and said else 0)


def do_site(options: argparse.Namespace) -> int:
    from dfkd.report import site

    page, problems = site.write()
    print(f"wrote {page.relative_to(paths.RESULTS.parent)}")
    return fail_each(problems)


def do_doctor(options: argparse.Namespace) -> int:
    from dfkd import doctor

    return doctor.show(data_root(options.data_root))


def do_check(options: argparse.Namespace) -> int:
    from dfkd.engine import check

    return check.show(options.device)


def profile_options(verb: argparse.ArgumentParser) -> None:
    cell_options(verb, NAME, "a recipe or method (`list`)")
    verb.add_argument("--precision", choices=PRECISIONS, help="default: as the run has it")
    device_option(verb)


def telling(action: str) -> Callable[[argparse.Namespace], int]:
    """What does that action of `session` and prints what it says."""

    def do(options: argparse.Namespace) -> int:
        from dfkd import session

        print(getattr(session, action)(options))
        return 0

    return do


Verb = tuple[str, Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], int]]
VERBS: dict[str, Verb] = {
    "run": ("run a method on a data set (the default verb)", run_options, do_run),
    "data": ("download and convert a data set, or verify the one that is there", data_options, do_data),
    "teacher": ("import or train a teacher", teacher_options, telling("make_teacher")),
    "prior": ("import or train a diffusion prior", prior_options, telling("make_prior")),
    "list": ("methods, tables and recipes, with the status of each", import_option, do_list),
    "plan": ("runs of the tables that have no valid record, with an estimated time", plan_options, do_plan),
    "leaderboard": ("write the tables and plots from the records", leaderboard_options, do_leaderboard),
    "check": ("compare a device with the CPU: every method, two tiny rounds", device_option, do_check),
    "profile": ("show where the time of a method's steps goes", profile_options, telling("profile")),
    "site": ("write results/site/index.html, the records as one page", lambda verb: None, do_site),
    "doctor": ("check the installation, the device, the data and the folders", data_root_option, do_doctor),
}


def parser() -> argparse.ArgumentParser:
    """The command line; `run` is the verb where none is named."""
    main = Parser(prog="bench.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    main.add_argument("--version", action="version", version=f"dfkd {__version__}")
    verbs = main.add_subparsers(dest="verb", metavar="VERB", required=True)
    for name, (text, add_options, _) in VERBS.items():
        add_options(verbs.add_parser(name, help=text, description=text))
    return main


def main(arguments: list[str] | None = None) -> int:
    streams.settle()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if arguments and arguments[0] not in (*VERBS, "-h", "--help", "--version"):
        if not arguments[0].startswith("-"):
            return fail(unknown("verb", arguments[0], VERBS))
        arguments.insert(0, "run")
    try:
        if (word := next((word for word in arguments if word.endswith("=--")), None)) is not None:
            raise UserError(f"argument {shown(word)}: -- is no value")  # argparse would pass on an empty list
        options = parser().parse_args(arguments or ["--help"], argparse.Namespace(arguments=arguments))
        status = VERBS[options.verb][2](options)
        streams.flush()
        return status
    except UserError as error:
        return fail(error, EXIT_PARTIAL if isinstance(error, Stopped) else 2)
    except OSError as error:  # the system refuses a file or folder, in whatever place
        return fail(UserError(f"{error.filename or 'the system'}: {error.strerror or error}"))
    except KeyboardInterrupt:
        return fail(KeyboardInterrupt("interrupted"), EXIT_PARTIAL if arguments[:1] == ["run"] else 130)


def fail(error: BaseException, status: int = 2) -> int:
    """Say it in one line, whatever was quoted in it."""
    print(f"bench.py: {one_line(error)}", file=sys.stderr)
    return status


def fail_each(errors: list[UserError]) -> int:
    """One line each; the exit status where the rest was done."""
    return max((fail(error, 1) for error in errors), default=0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    status = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what it would ask for is done
    sys.exit(status)
