"""`labkit serve MODEL`: a language model over HTTP; `labkit collect FILE`: what its users left."""

import gc
import json

from labkit.atomic import claim, write_text
from labkit.commands.options import Collect, Serve, check
from labkit.commands.shell import note, say
from labkit.errors import LabError
from labkit.generation.loaded import load
from labkit.models.config import context_length
from labkit.models.huggingface.folders import is_classifier, is_reader, quiet_libraries
from labkit.models.tagger import is_tagger
from labkit.training.run_folder import model_folder

#: Tokens of a prompt and its answer, of a model that could read more.
MOST_LENGTH = 1024
#: Hosts that no other machine reaches.
LOCAL = ("127.0.0.1", "localhost")


def serve(options: Serve) -> None:
    """Open the model, listen, say where.

    Raises:
        LabError: the model or an option cannot be used, or the port is in use.
    """
    from labkit.serving import Kept, Limits
    from labkit.serving import serve as run

    check(0 <= options.port <= 65535, options, "port", "0 to 65535")
    check(options.slots >= 1, options, "slots", "at least 1")
    check(options.queue >= 0, options, "queue", "0 or more")
    check(options.max_seconds > 0, options, "max_seconds", "above 0")
    check(options.max_body >= 1, options, "max_body", "at least 1")
    check(options.grace >= 1, options, "grace", "at least 1")
    folder = model_folder(options.model)
    quiet_libraries()
    if is_tagger(folder) or is_classifier(folder) or is_reader(folder):
        raise LabError(f"{folder} holds no language model: labkit serve needs one, such as smollm2")
    opened = load(folder, device=options.device)
    context = context_length(opened.model)
    longest = min(context, MOST_LENGTH) if options.max_length is None else options.max_length
    check(1 <= longest <= context, options, "max_length", f"1 to the model's context, {context}")
    limits = Limits(options.slots, options.queue, longest, options.max_seconds, options.max_body)
    name = options.model.name if options.model.name != "model" else options.model.parent.name

    def announce(address: str, token: str) -> None:
        say(f"{name} is served at {address}/v1 (base_url of OpenAI's clients), token {token}")
        say(f"a page to chat with it: {address}/#token={token}")
        say("Ctrl-C ends it")
        if options.host not in LOCAL:
            note(
                f"other machines may reach {options.host}, and what they send is not encrypted:"
                " put a server with TLS before it"
            )

    gc.enable()  # off while it was imported and opened (labkit.__main__)
    gc.freeze()
    run(
        opened,
        name,
        limits,
        host=options.host,
        port=options.port,
        kept=None if options.keep is None else Kept(options.keep),
        grace=options.grace,
        announce=announce,
    )


def collect(options: Collect) -> None:
    """Write what a service has kept as files that other commands read.

    Raises:
        LabError: there is no such file, it is of another kind, or `out` is not empty.
    """
    from labkit.serving import Kept

    if not options.kept.is_file():
        raise LabError(f"{options.kept} is no file: give the one of labkit serve --keep")
    kept = Kept(options.kept)
    try:
        asked = len(kept.requests())
        files = {
            "conversations.jsonl": kept.conversations(),
            "preferences.jsonl": kept.preferences(),
            "texts.jsonl": kept.texts(),
        }
    finally:
        kept.close()
    if not any(files.values()):
        raise LabError(
            f"{options.kept} holds {asked} requests, none of them a whole chat with a rating or a"
            " text to continue: collect again when people have rated some"
        )
    with claim(options.out) as folder:
        for name, rows in files.items():
            if rows:
                write_text(folder / name, "".join(json.dumps(row) + "\n" for row in rows))
    uses = {
        "conversations.jsonl": "chats with an answer that people liked",
        "preferences.jsonl": "pairs of a liked and a disliked answer",
        "texts.jsonl": "texts that were to be continued",
    }
    for name, rows in files.items():
        if rows:
            say(f"{options.out / name}: {len(rows):,} {uses[name]}")
    name = next(name for name, rows in files.items() if rows)
    verb = "evaluate MODEL" if name == "texts.jsonl" else "finetune --model MODEL"
    say(f"next: labkit {verb} --data {options.out / name}")
