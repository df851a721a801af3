# What is built from what: points (rows of the ledger), chapters (executed notebooks), pages.
#
# Every file here appears by rename when it is whole, so `--nolock --ignore-incomplete` (see the Makefile) is safe after a
# kill: what exists is complete. A point has no inputs, so rows are computed only where they are missing; their file name
# holds their parameters and the experiment's version. Chapters and pages are drawn again when a source is newer.
import sys
from pathlib import Path

from advbook import chapters, ledger

BIN = Path(sys.executable).parent
PROFILE = str(config.get("profile", "quick"))
# Snakemake takes no name of a single letter, so N may come as SET_N.
OVERRIDES = {name.removeprefix("SET_"): value for name, value in config.items() if name.isupper()}
FLAGS = " ".join(["--profile", PROFILE, *(f"-p {name} {value}" for name, value in OVERRIDES.items())])
try:
    PLAN = chapters.plan(PROFILE, OVERRIDES)
except ValueError as error:
    sys.exit(f"advbook: {error}")

POINTS = {
    str(path): (chapter, index)
    for chapter, points in PLAN.items()
    for index, path in enumerate(chapters.row_files(points))
}
for path in POINTS:
    ledger.read(Path(path))  # sets a damaged file aside, so that it counts as missing below
SHOWN = {chapter: [str(path) for path in chapters.row_files(points[:1])] for chapter, points in PLAN.items()}
SOURCES = [str(path) for path in sorted(Path("advbook").rglob("*")) if path.suffix in {".py", ".js", ".css"}]
PUBLISHED = [str(path) for path in sorted(Path("book/results").rglob("*")) if path.is_file()]
PROSE = [str(path) for path in sorted(Path("book").glob("*.*"))] + ["_config.yml", "_toc.yml"]
STATIC = [str(path) for path in sorted(Path("book/_static").rglob("*")) if path.is_file()]


localrules:
    pages,
    sweep,


rule pages:
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
        rows=lambda wildcards: SHOWN.get(wildcards.page, [path for paths in SHOWN.values() for path in paths]),
        sources=SOURCES,
        published=PUBLISHED,
        profile=f"nbs/profiles/{PROFILE}.yml",
    output:
        update("book/chapters/{page}.ipynb"),
    params:
        flags=FLAGS,
    shell:
        "{sys.executable} -m advbook.chapters page {wildcards.page} {params.flags}"


for path, (chapter, index) in POINTS.items():

    rule:
        name:
            f"point_{chapter}_{index}"
        output:
            path,
        params:
            call=f"{chapter} --index {index} {FLAGS}",
        threads: workflow.cores or 1
        shell:
            # Threads that wait for each other spin: long by default, which on a busy machine costs many times the work.
            "GOMP_SPINCOUNT=10000 {sys.executable} -m advbook.chapters point {params.call}"


rule sweep:
    input:
        list(POINTS),
