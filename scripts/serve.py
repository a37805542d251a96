"""Serves an exported model over HTTP.

python scripts/serve.py --artifact=artefacts/a --port=8000

Then `curl -s localhost:8000/v1/recommend -d '{"history": ["242", "302"], "k": 5}'`, and a page at
http://localhost:8000/. /openapi.json describes requests, /metrics is for Prometheus, /readyz for
probes. SIGTERM answers what is there and ends; SIGHUP looks for changes at once, which the server
does every few seconds anyhow. docs/serving.md tells more, docs/operations.md how to run it.
"""

import os
import sys
from pathlib import Path

from _main import run
from absl import flags, logging

from jaxrec.typing import UserError

flags.DEFINE_string("artifact", None, "Artefact to serve: a directory that scripts/export.py made.")
flags.DEFINE_string(
    "deployment",
    None,
    "Instead of --artifact, a TOML file that names a primary and a candidate, and how they share "
    "the traffic. Changes take effect while serving.",
)
flags.DEFINE_string(
    "host", "127.0.0.1", "Address to listen on; 0.0.0.0 or :: for all of the machine."
)
flags.DEFINE_integer("port", 8000, "Port; 0 takes any that is free.", 0, 65535)
flags.DEFINE_string(
    "state",
    "sqlite:jaxrec-events.db",
    "Where events of users are kept: sqlite:PATH, redis://HOST:PORT, or memory: to forget them.",
)
flags.DEFINE_integer("max_events", 1000, "Newest events of a user that are kept.", 1)
flags.DEFINE_string(
    "histories", None, "Dataset whose events the store shall have; adds what is new."
)
flags.DEFINE_string("rules", None, "TOML file of rules, such as configs/rules.toml.")
flags.DEFINE_string("keys", None, "File of API keys; without it everybody who connects may ask.")
flags.DEFINE_string(
    "new_key", None, "Make a key of this name in the file --keys, print it once, and end."
)
flags.DEFINE_list(
    "scopes",
    ["serve", "events"],
    "What the new key is for: serve, events, users (to see and to remove what is kept of one).",
)
flags.DEFINE_float(
    "rate",
    None,
    "Requests a second that one address, or one key, may make; no limit by default.",
    0,
)
flags.DEFINE_string("audit_log", None, "File to log each answer in, one line of JSON each.")
flags.DEFINE_bool("log_users", False, "Name users in the audit log.")
flags.DEFINE_bool("page", True, "Serve the page at /, and the search for items and users.")
flags.DEFINE_integer("max_batch", 16, "Most requests that the model runs at once.", 1, 1024)
flags.DEFINE_integer(
    "threads", None, "Threads of a CPU that compute; all cores but one by default.", 1
)
flags.DEFINE_integer("max_waiting", 512, "Most requests that wait for the model.", 1)
flags.DEFINE_float("timeout", 1.0, "Seconds that a request waits for the model unless it says.", 0)
flags.DEFINE_integer("max_body", 1 << 20, "Most bytes of a request's body.", 1024)
flags.DEFINE_integer("max_connections", 2048, "Most clients that are connected at once.", 1)
flags.DEFINE_float(
    "client_timeout",
    10.0,
    "Seconds in which a client must send the head of a request, then its body, and read what it is "
    "sent.",
    0,
)
flags.DEFINE_float(
    "drain", 1.0, "After SIGTERM, seconds in which new requests are still answered.", 0, 600
)
flags.DEFINE_float("reload_every", 2.0, "Seconds between looks for changed files.", 0.1)
flags.DEFINE_string(
    "compile_cache",
    str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrec" / "compiled"),
    "Folder that keeps compiled programs, so that the next start is quick; empty for none.",
)

FLAGS = flags.FLAGS


def main() -> None:
    """Serves until it is told to end."""
    if FLAGS.new_key:
        _make_key()
        return
    if bool(FLAGS.artifact) == bool(FLAGS.deployment):
        raise UserError("say what to serve: --artifact=DIR, or --deployment=FILE.")
    try:
        from jaxrec.serving.deployment import Deployment
        from jaxrec.serving.server import ServerConfig, serve
    except ModuleNotFoundError as error:
        raise UserError(
            f"the server needs the package {error.name}. Install it: pip install 'jaxrec[serve]'."
        ) from None
    primary = Deployment(primary=Path(FLAGS.artifact)) if FLAGS.artifact else None
    serve(
        ServerConfig(
            deployment=primary or Path(FLAGS.deployment),
            host=FLAGS.host,
            port=FLAGS.port,
            state=FLAGS.state,
            max_events=FLAGS.max_events,
            histories=_path(FLAGS.histories),
            rules=_path(FLAGS.rules),
            keys=_path(FLAGS.keys),
            rate=FLAGS.rate,
            audit_log=_path(FLAGS.audit_log),
            log_users=FLAGS.log_users,
            page=FLAGS.page,
            threads=FLAGS.threads,
            max_batch=FLAGS.max_batch,
            max_waiting=FLAGS.max_waiting,
            timeout_s=FLAGS.timeout,
            max_body=FLAGS.max_body,
            max_connections=FLAGS.max_connections,
            client_timeout_s=FLAGS.client_timeout,
            drain_s=FLAGS.drain,
            reload_every_s=FLAGS.reload_every,
            compile_cache=_path(FLAGS.compile_cache),
        ),
        say=_say,
    )


def _make_key() -> None:
    from jaxrec.serving.keys import new_key

    if not FLAGS.keys:
        raise UserError("say which file the key goes into: --keys=FILE.")
    print(new_key(Path(FLAGS.keys), FLAGS.new_key, scopes=FLAGS.scopes, rate=FLAGS.rate))


def _say(sentence: str) -> None:
    try:
        print(sentence, flush=True)
    except OSError:  # whoever started the server reads no more, and it serves on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


if __name__ == "__main__":
    run(main, verbosity=logging.WARNING)  # a server tells in its log what it cannot tell anybody
