"""`mayfly`: one command for everything. Each subcommand imports what it needs, no more."""

import argparse
import asyncio
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import get_args

from jobs import __version__
from jobs.process import EX_CONFIG, configure_logging
from jobs.process import run as run_role
from jobs.settings import Settings, SettingsError


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except SettingsError as error:
        print(f"mayfly: {error}", file=sys.stderr)
        return EX_CONFIG
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mayfly", description="Private image annotation: nothing stays behind."
    )
    parser.add_argument("--version", action="version", version=f"mayfly {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="run everything on this machine")
    serve.add_argument("--workers", type=int, default=1, help="worker processes (default 1)")
    serve.add_argument(
        "--front-doors", type=int, default=1, help="front door processes on one port (default 1)"
    )
    serve.add_argument(
        "--tls", choices=["self-signed"], help="speak TLS with a certificate made now, for a trial"
    )
    serve.set_defaults(run=_serve)
    api = commands.add_parser("api", help="run a front door only")
    api.set_defaults(run=_api)
    worker = commands.add_parser("worker", help="run a worker only")
    worker.set_defaults(run=_worker)
    for command in (serve, api):
        command.add_argument("--host", help="address to listen on (MAYFLY_HOST)")
        command.add_argument("--port", help="port to listen on, 0 for a free one (MAYFLY_PORT)")
    for command in (serve, api, worker):
        command.add_argument("--redis-url", help="Redis or Valkey to use (MAYFLY_REDIS_URL)")
        command.add_argument(
            "--allow-unverified-redis",
            action="store_const",
            const="true",
            help="take a Redis that does not tell how it is set up",
        )
        command.add_argument(
            "--allow-swap",
            action="store_const",
            const="true",
            help="let images be swapped to a disk, for a trial",
        )

    _annotate_options(commands.add_parser("annotate", help="find things in images"))

    evaluate = commands.add_parser("evaluate", help="compare what was found with the truth")
    evaluate.add_argument("--truth", type=Path, required=True, metavar="COCO.json")
    evaluate.add_argument("--predictions", type=Path, required=True, metavar="COCO.json")
    evaluate.add_argument("--threshold", type=float, default=0.5, help="lowest score (default 0.5)")
    evaluate.add_argument("--iou", type=float, default=0.5, help="least overlap (default 0.5)")
    evaluate.add_argument("--out", type=Path, help="folder for report.json and worst.png")
    evaluate.add_argument("--images", type=Path, help="folder of the images, to draw the worst")
    evaluate.set_defaults(run=_evaluate)

    bench = commands.add_parser("bench", help="how fast the service is on this machine")
    bench.add_argument("--quick", action="store_true", help="small and in one round, for a look")
    bench.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these measures alone")
    bench.add_argument("--rounds", type=int, metavar="N", help="how often each (default 3)")
    bench.add_argument(
        "--peers",
        action="store_true",
        help="LitServe, BentoML and mosec too, each in an environment that is made for it",
    )
    bench.add_argument(
        "--stand-in",
        type=float,
        default=0,
        metavar="MS",
        help="a model that sleeps so long for each image in place of the detector",
    )
    bench.add_argument(
        "--out", type=Path, default=Path("out/bench"), help="folder for bench.json and bench.png"
    )
    bench.set_defaults(run=_bench)

    quality = commands.add_parser("bench-quality", help="how well exemplar finds, by known truth")
    quality.add_argument(
        "--data",
        type=Path,
        required=True,
        metavar="DIR",
        help="sources, as `python -m scripts.train_exemplar fetch` gets them",
    )
    quality.add_argument("--split", choices=("test", "dev"), default="test")
    quality.add_argument("--pictures", type=int, default=16, help="of each row (default 16)")
    quality.add_argument("--device", default="cpu")
    quality.add_argument("--head", type=Path, help="weights other than those of the package")
    quality.add_argument("--out", type=Path, help="folder for quality.json and quality.png")
    quality.set_defaults(run=_bench_quality)

    models = commands.add_parser("models", help="list models, fetch their weights")
    actions = models.add_subparsers(required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="every model and whether its weights are there")
    listing.set_defaults(run=_models_list)
    fetch = actions.add_parser("fetch", help="download a model's weights from who publishes them")
    fetch.add_argument("name")
    fetch.add_argument(
        "--revision", help="of an open-vocabulary model: branch, tag or commit (default: main)"
    )
    fetch.set_defaults(run=_models_fetch)

    keys = commands.add_parser("keys", help="make, list and end keys")
    actions = keys.add_subparsers(required=True, metavar="ACTION")
    sealing = actions.add_parser("worker", help="make the key pair that images are sealed with")
    sealing.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    change = sealing.add_mutually_exclusive_group()
    change.add_argument(
        "--rotate", action="store_true", help="put a new pair before the old, which still opens"
    )
    change.add_argument("--retire", action="store_true", help="keep only the newest pair")
    sealing.set_defaults(run=_keys_worker)
    tls = actions.add_parser("tls", help="make a self-signed certificate, for a trial")
    tls.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    tls.add_argument("--name", action="append", default=[], help="host name or address; repeatable")
    tls.set_defaults(run=_keys_tls)
    create = actions.add_parser("create", help="make an API key, for a new account or one more")
    create.add_argument("--label", help="what the new account is called")
    create.add_argument("--contact", default="", help="address under which it is reached")
    create.add_argument("--news", action="store_true", help="it has agreed to be sent news")
    create.add_argument("--account", metavar="ID", help="add the key to this account instead")
    create.add_argument(
        "--scope", action="append", choices=["submit", "operator"], help="repeatable; submit"
    )
    create.add_argument("--limits", default="", help="such as '10/minute; 500/day'")
    create.add_argument("--days", type=float, help="how long it is good for (default: for ever)")
    create.set_defaults(run=_keys, action="create")
    listing = actions.add_parser("list", help="every API key, without its secret")
    listing.set_defaults(run=_keys, action="show")
    revoke = actions.add_parser("revoke", help="end an API key; an account goes with its last")
    rotate = actions.add_parser("rotate", help="replace an API key by a new one")
    rotate.add_argument("--keep-hours", type=float, default=0, help="how long the old one is good")
    revoke.set_defaults(run=_keys, action="revoke")
    rotate.set_defaults(run=_keys, action="rotate")
    for action in (revoke, rotate):
        action.add_argument("key", help="its id, as listed")

    logs = commands.add_parser("logs", help="server logs, for an attack that must be reported")
    actions = logs.add_subparsers(required=True, metavar="ACTION")
    export = actions.add_parser("export", help="print lines as JSON")
    export.add_argument("--ip", default="", help="an address, or a network such as 203.0.113.0/24")
    export.add_argument("--since", default="", help="a date or time, ISO 8601, UTC")
    export.add_argument("--folder", type=Path, help="where they are (MAYFLY_ACCESS_LOG)")
    export.set_defaults(run=_logs_export)

    audit = commands.add_parser("audit", help="send canaries through, look whether any is left")
    audit.add_argument("--server", help="a running service; without it one is started")
    audit.add_argument("--redis", help="its Redis; --server needs it")
    audit.add_argument("--api-key", default=os.environ.get("API_KEY"), help="or set API_KEY")
    audit.add_argument("--ca", type=Path, help="certificate to trust, such as a self-signed one")
    for name, kind, text in (
        ("--pid", int, "process of the service, whose open files are searched"),
        ("--log", Path, "log file to search"),
        ("--folder", Path, "folder to search, such as a TMPDIR"),
    ):
        audit.add_argument(name, type=kind, action="append", default=[], help=text + "; repeatable")
    audit.add_argument("--json", action="store_true", help="write JSON instead of a table")
    audit.set_defaults(run=_audit)

    demo = commands.add_parser("demo", help="run the main job end to end on a picture of coins")
    demo.add_argument("--out", type=Path, default=Path("out"), help="folder to write to")
    demo.set_defaults(run=_demo)
    return parser


def _annotate_options(annotate: argparse.ArgumentParser) -> None:
    from jobs.contract import Match
    from scripts.dataset import KINDS

    annotate.set_defaults(run=_annotate)
    annotate.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="images, folders, zip or tar archives, globs; - reads a list of them from stdin",
    )
    what = annotate.add_argument_group("what to look for")

    def several(flag: str, metavar: str, text: str, kind: type = str) -> None:
        what.add_argument(
            flag,
            action="append",
            default=[],
            metavar=metavar,
            type=kind,
            help=f"{text}; repeatable",
        )

    place = "on the first image unless IMAGE is named"
    several("--box", "[IMAGE:]X0,Y0,X1,Y1[:LABEL]", f"a box round one example, {place}")
    several(
        "--not-box", "[IMAGE:]X0,Y0,X1,Y1[:LABEL]", "a box round a look-alike that is not meant"
    )
    several("--point", "[IMAGE:]X,Y[:LABEL]", f"a point on one example, {place}")
    several("--text", "WORDS", "words for it, for models that read")
    several("--prompts", "FILE", "prompts as the API takes them, images named by path", Path)
    several(
        "--from-labels",
        "COCO.json",
        "take existing labels as examples, and leave images that have labels alone",
        Path,
    )
    what.add_argument(
        "--examples", type=int, default=5, metavar="N", help="of each existing label (default 5)"
    )
    what.add_argument("--label", default="object", help="what examples without LABEL are called")
    what.add_argument("--model", help="another model than the server's default")
    what.add_argument("--min-score", type=float, help="lowest score to report, 0 to 1")
    what.add_argument("--max-annotations", type=int, help="most finds an image (300)")
    what.add_argument(
        "--match",
        choices=get_args(Match),
        help="this very thing, what looks alike, or its whole kind",
    )
    what.add_argument("--upright", action="store_true", help="nothing that is turned")
    what.add_argument("--mask", action="store_true", help="masks too, if the model has them")
    what.add_argument("--keypoints", action="store_true", help="keypoints too, if it has them")
    out = annotate.add_argument_group("what comes out")
    out.add_argument("-o", "--output", metavar="OUT", help="file or folder (default: stdout)")
    out.add_argument(
        "--format", choices=KINDS, default="mayfly", metavar="FORMAT", help=", ".join(KINDS)
    )
    out.add_argument(
        "--split", type=float, default=0, metavar="SHARE", help="share of a validation part, 0 to 1"
    )
    out.add_argument(
        "--images",
        choices=["none", "link", "copy"],
        help="put the images beside their labels (default: link for yolo, else none)",
    )
    out.add_argument(
        "--image-prefix", default="", metavar="TEXT", help="before names in Label Studio's tasks"
    )
    out.add_argument("--preview", type=int, default=0, metavar="N", help="draw the first N images")
    how = annotate.add_argument_group("how")
    how.add_argument("--server", help="URL of a running service; without it one is started")
    how.add_argument("--api-key", default=os.environ.get("API_KEY"), help="or set API_KEY")
    how.add_argument("--ca", type=Path, metavar="FILE", help="certificate to trust, if self-signed")
    how.add_argument(
        "--seal",
        nargs="?",
        const=True,
        default=False,
        metavar="KEY",
        help="seal images and prompts to the workers here; KEY is theirs, as you were told it",
    )
    how.add_argument("--concurrency", type=int, default=8, help="images on their way (default 8)")
    how.add_argument("--limit", type=int, metavar="N", help="stop after N images")
    how.add_argument("--watch", action="store_true", help="go on with images that appear later")
    how.add_argument("--dry-run", action="store_true", help="say what would be done")


def _use(options: argparse.Namespace) -> None:
    """Flags are settings with a shorter name; child processes read them from the environment."""
    for name in ("host", "port", "redis_url", "allow_unverified_redis", "allow_swap"):
        if getattr(options, name, None) is not None:
            os.environ[f"MAYFLY_{name.upper()}"] = getattr(options, name)


def _serve(options: argparse.Namespace) -> int:
    from scripts import serve

    _use(options)
    if options.workers < 1 or options.front_doors < 1:
        raise SettingsError("--workers and --front-doors must be at least 1.")
    settings = Settings.from_env()
    configure_logging(settings)
    return asyncio.run(
        serve.run(settings, options.workers, options.front_doors, self_signed=bool(options.tls))
    )


def _api(options: argparse.Namespace) -> int:
    from api.main import run

    _use(options)
    return run_role(run)


def _worker(options: argparse.Namespace) -> int:
    from worker.main import run

    _use(options)
    return run_role(run)


def _annotate(options: argparse.Namespace) -> int:
    import uvloop

    from scripts import annotate

    return uvloop.run(annotate.run(options))


def _bench(options: argparse.Namespace) -> int:
    import uvloop

    try:
        from scripts.bench.run import run
    except ModuleNotFoundError as error:
        raise SettingsError(f"This needs {error.name}: pip install 'mayfly[bench]'.") from None
    return uvloop.run(run(options))


def _bench_quality(options: argparse.Namespace) -> int:
    try:
        from scripts.exemplar import quality
    except ModuleNotFoundError as error:
        raise SettingsError(f"This needs {error.name}: pip install 'mayfly[train]'.") from None
    if not (options.data / "bank.json").is_file():
        raise SettingsError(
            f"{options.data} holds no pictures. Run `python -m scripts.train_exemplar fetch --data "
            f"{options.data}` first; it needs npm and apt-get."
        )
    return quality.run(options)


def _evaluate(options: argparse.Namespace) -> int:
    try:
        from scripts import evaluate
    except ImportError as error:
        raise SettingsError(f"This needs {error.name}: pip install 'mayfly[evaluate]'.") from None

    return evaluate.run(options)


def _models_list(_: argparse.Namespace) -> int:
    from worker import models

    settings = Settings.from_env()
    for model in models.describe(settings.weights_dir, settings.checkpoint_paths()):
        state = "ready" if model.ready else "no weights"
        shown = ", ".join(model.prompts) or f"none, {len(model.labels)} labels"
        print(f"{model.name:38} {state:10}  {', '.join(model.outputs):16}  prompts: {shown}")
    print("\nWithout weights: `mayfly models fetch NAME`, or MAYFLY_CHECKPOINTS=NAME=PATH.")
    return 0


def _models_fetch(options: argparse.Namespace) -> int:
    from worker import models

    try:
        path = models.fetch(options.name, Settings.from_env().weights_dir, options.revision)
    except models.ModelUnavailable as error:
        raise SettingsError(str(error)) from None
    print(f"{options.name}: {path or 'nothing to fetch, its weights are installed'}")
    return 0


def _keys_worker(options: argparse.Namespace) -> int:
    from scripts import sealing_keys

    private, public = options.out / "worker.key", options.out / "worker.pub"
    if options.rotate:
        sealing_keys.rotate(private, public)
    elif options.retire:
        sealing_keys.retire(private, public)
    else:
        sealing_keys.create(private, public)
    return 0


def _keys_tls(options: argparse.Namespace) -> int:
    from scripts import certificates

    certificates.create(options.out, options.name)
    return 0


def _keys(options: argparse.Namespace) -> int:
    from scripts import keys

    action: Callable[[argparse.Namespace], int] = getattr(keys, options.action)
    return action(options)


def _logs_export(options: argparse.Namespace) -> int:
    from api.access_log import export

    folder = options.folder or Settings.from_env().access_log_folder
    if folder is None or not folder.is_dir():
        raise SettingsError("No server logs are kept here. Set MAYFLY_ACCESS_LOG, or --folder.")
    try:
        for line in export(folder, options.ip, options.since):
            sys.stdout.buffer.write(line)
    except ValueError as error:
        raise SettingsError(f"{error}.") from None
    return 0


def _audit(options: argparse.Namespace) -> int:
    from scripts import audit

    return asyncio.run(audit.run(options))


def _demo(options: argparse.Namespace) -> int:
    from scripts import demo

    return asyncio.run(demo.run(options.out))


if __name__ == "__main__":
    sys.exit(main())
