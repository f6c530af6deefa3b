"""What an author of chapters, or a teacher, does from the shell.

python -m labkit.course edit 03           build/03_attention.py, to change in an editor
python -m labkit.course commit 03         back into the notebook: executed, tied, stamped
python -m labkit.course execute 03        the notebook as it is, executed
python -m labkit.course stamp --check     is every output up to date?
python -m labkit.course record 03         its sizes of an hour, run here and kept in data/recorded/
python -m labkit.course verdicts FOLDER   which exercises passed in the notebooks handed in?
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from labkit.course import editing, fingerprints, recorded, running, shows, stamping, verdicts
from labkit.course.chapter import chapters, one_chapter
from labkit.errors import LabError
from labkit.runtime import duration


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status."""
    given = _parser().parse_args(arguments)
    try:
        return _COMMANDS[given.command](given)
    except LabError as error:
        print(error, file=sys.stderr)
        return getattr(error, "exit_code", 2)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m labkit.course",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    chapter = argparse.ArgumentParser(add_help=False)
    chapter.add_argument("chapter", help="its number or name, or the path of a notebook")
    sizes = argparse.ArgumentParser(add_help=False)
    sizes.add_argument("--profile", default="cpu", help="smoke, cpu or gpu; what is committed: cpu")

    edit = commands.add_parser("edit", parents=[chapter], help="write a chapter as text")
    edit.add_argument("--out", type=Path, default=editing.TEXTS, help="folder (default: build)")
    commit = commands.add_parser(
        "commit", parents=[chapter, sizes], help="bring it back from text, execute and stamp it"
    )
    commit.add_argument("--text", type=Path, help="the file (default: build/NN_name.py)")
    execute = commands.add_parser(
        "execute", parents=[chapter, sizes], help="run a notebook for committing"
    )
    execute.add_argument("--out", type=Path, help="the notebook to write (default: in place)")
    stamp = commands.add_parser(
        "stamp", help="write the project's address, measured figures and shown sources"
    )
    stamp.add_argument(
        "--repository", help="first set the address: https://github.com/OWNER/NAME, or origin"
    )
    stamp.add_argument(
        "--check",
        action="store_true",
        help="write nothing; exit with 1 if a file is stale or its outputs are of other code",
    )
    handed_in = commands.add_parser(
        "verdicts", help="list what the exercises said in notebooks that learners saved"
    )
    handed_in.add_argument("notebooks", nargs="+", type=Path, help="notebooks, or folders of them")
    handed_in.add_argument("--csv", action="store_true", help="a row for each exercise, as CSV")
    kept = commands.add_parser(
        "record", parents=[chapter], help="run a chapter for an hour and keep what it records"
    )
    kept.add_argument("--profile", choices=("hour", "gpu"), default="hour")
    return parser


def _edit(given: argparse.Namespace) -> int:
    print(editing.edit(given.chapter, given.out))
    return 0


def _commit(given: argparse.Namespace) -> int:
    payload = editing.commit(given.chapter, given.text, given.profile)
    chapter = one_chapter(given.chapter)
    if payload:
        memory = f"{payload['peak_rss_mb'] / 1000:.1f} GB"
        print(f"{chapter.path}: {duration(payload['seconds'])}, peak memory {memory}")
        text = given.text or editing.TEXTS / f"{chapter.name}.py"
        print(f"its metrics are in {text.with_suffix('.json')}")
    else:
        print(f"{chapter.path}: it reports no metrics")
    return 0


def _execute(given: argparse.Namespace) -> int:
    path = one_chapter(given.chapter).path
    print(json.dumps(running.execute(path, given.out or path, given.profile), indent=2))
    return 0


def _stamp(given: argparse.Namespace) -> int:
    if given.repository is not None:
        stamping.set_repository(given.repository)
    changed = stamping.stamp(write=not given.check)
    for path in changed:
        if given.check:
            print(f"{path} is stale: run `python -m labkit.course stamp`.", file=sys.stderr)
        else:
            print(f"stamped {path}")
    # What only a run can mend is said either way.
    untied = [said for chapter in chapters() for said in fingerprints.stale(chapter.path)]
    untied += [said for chapter in chapters() for said in recorded.stale_recordings(chapter)]
    untied += shows.unsaid(chapters())
    for said in untied:
        print(said, file=sys.stderr)
    return 1 if given.check and (changed or untied) else 0


def _record(given: argparse.Namespace) -> int:
    for path in running.record(given.chapter, profile=given.profile):
        print(path)
    return 0


def _verdicts(given: argparse.Namespace) -> int:
    rows = verdicts.collect(given.notebooks)
    if given.csv:
        print(verdicts.as_csv(rows), end="")
    else:
        print("\n".join(verdicts.as_lines(rows) or ["no exercise has been checked yet"]))
    return 0


_COMMANDS = {
    "edit": _edit,
    "commit": _commit,
    "execute": _execute,
    "record": _record,
    "stamp": _stamp,
    "verdicts": _verdicts,
}


if __name__ == "__main__":
    sys.exit(main())
