# What is built from what: points (rows of the ledger), chapters (executed notebooks), pages.
#
# Every file here appears by rename when it is whole, so `--nolock --ignore-incomplete` (see the Makefile) is safe after a
# kill: what exists is complete. A point has no inputs, so rows are computed only where they are missing; their file name
# holds their parameters and the experiment's version. Chapters and pages are drawn again when a source is newer.
#
# --config: profile=NAME; each=point for a job a point (else one a chapter computes what its page shows, in one kernel);
# threads=N of a job; gpus=0,1 for a job a GPU; PARAMETER=value for all chapters that have it.
import shlex
import sys
from pathlib import Path

from snakemake.jobs import Job

from advbook import chapters, ledger

BIN = Path(sys.executable).parent
PROFILE = str(config.get("profile", "quick"))
GPUS = str(config.get("gpus", ""))
# Snakemake takes no name of a single letter, so N may come as SET_N.
OVERRIDES = {name.removeprefix("SET_"): value for name, value in config.items() if name.isupper()}
FLAGS = shlex.join(["--profile", PROFILE, *(word for p in OVERRIDES.items() for word in ("-p", *map(str, p)))])
try:
    THREADS = int(config.get("threads", max(1, (workflow.cores or 1) // len(GPUS.split(",")))))
    PLAN = chapters.plan(PROFILE, OVERRIDES)
except ValueError as error:
    sys.exit(f"advbook: {error}")

SHOWN = {chapter: [str(path) for path in chapters.row_files(entries[:1])] for chapter, entries in PLAN.items()}
ALL = [path for paths in SHOWN.values() for path in paths]
POINTS = {chapter: [str(path) for path in chapters.row_files(entries)] for chapter, entries in PLAN.items()}
JOBS = {}  # name -> arguments of `advbook.chapters rows`, and the row files that it writes
for chapter, paths in POINTS.items():
    if workflow.is_main_process:  # a damaged file is set aside, so that it counts as missing
        for path in paths:
            ledger.read(Path(path))
    together = [path for path in SHOWN[chapter] if config.get("each") != "point" and not Path(path).exists()]
    JOBS[f"rows_{chapter}"] = chapter, together
    for index, path in enumerate(paths):
        if path not in together:
            JOBS[f"point_{chapter}_{index}"] = f"{chapter} --index {index}", [path]

SOURCES = [str(path) for path in sorted(Path("advbook").rglob("*")) if path.suffix in {".py", ".js", ".css"}]
PUBLISHED = [str(path) for path in sorted(Path("book/results").rglob("*")) if path.is_file()]
PROSE = [str(path) for path in sorted(Path("book").glob("*.*"))] + ["_config.yml", "_toc.yml"]
STATIC = [str(path) for path in sorted(Path("book/_static").rglob("*")) if path.is_file()]


# Snakemake deletes outputs before their job starts and when it fails. Here an output that is there is whole, and stays: the
# page as it was, a row that another run has written meanwhile, the rows of a job that died at a later one.
async def keep(job):
    """Delete nothing."""


async def forget(job, *_):
    """Delete nothing but what Snakemake notes of outputs even now: the old page would pass for one of today's sources."""
    job.dag.workflow.persistence.cleanup(job)


Job.remove_existing_output = keep
Job.cleanup = forget


localrules:
    pages,
    site,
    sweep,


rule pages:
    input:
        "_build/advbook-site.zip",
        ALL,  # a row that is gone is computed again although its page is there


rule site:
    input:
        expand("book/chapters/{page}.ipynb", page=chapters.PAGES),
        PROSE,
        STATIC,
    output:
        "_build/advbook-site.zip",
    log:
        "_build/pages.log",
    shell:
        # Always a fresh build, since Sphinx does not repeat the warnings of pages that did not change; beside the old
        # site, which goes only when the new one is whole.
        "rm -rf _build/new && mkdir -p _build/new && "
        "{{ {BIN}/jupyter-book build . --path-output _build/new -W --keep-going > {log} 2>&1 "
        "&& test -f _build/new/_build/html/index.html "
        "|| {{ tail -n 25 {log} >&2; echo 'advbook: the pages could not be built; see {log}.' >&2; exit 1; }}; }} && "
        "rm -rf _build/html && mv _build/new/_build/html _build/html && "
        "mkdir _build/new/zip && cp -r _build/html _build/new/zip/advbook && "
        "find _build/new/zip -name '*.map' -delete && "
        "(cd _build/new/zip && {sys.executable} -m zipfile -c ../site.zip advbook) && "
        "mv _build/new/site.zip {output} && rm -rf _build/new"


rule chapter:
    input:
        notebook="nbs/{page}.py",
        rows=lambda wildcards: ALL if wildcards.page == "claims" else SHOWN.get(wildcards.page, []),
        sources=SOURCES,
        published=PUBLISHED,
        profile=f"nbs/profiles/{PROFILE}.yml",
    output:
        "book/chapters/{page}.ipynb",
    params:
        flags=FLAGS,
    shell:
        "{sys.executable} -m advbook.chapters page {wildcards.page} {params.flags}"


for name, (arguments, paths) in JOBS.items():

    rule:
        name:
            name
        output:
            paths,
        params:
            call=f"{arguments} {FLAGS}" + (f" --gpus {GPUS}" if GPUS else ""),
        threads: THREADS
        shell:
            # Snakemake sets OMP_NUM_THREADS to the job's threads. Those that wait for each other spin: long by default,
            # which on a busy machine costs many times the work.
            "GOMP_SPINCOUNT=10000 {sys.executable} -m advbook.chapters rows {params.call}"


rule sweep:
    input:
        POINTS.values(),
