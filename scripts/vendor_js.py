"""Fill book/_static/vendor with the third-party JavaScript and fonts that the pages load.

The files are committed, so neither a reader nor `make book` needs npm. Run this only to change a version:
edit `PACKAGES` and `SHA256` together. `--check` compares the folder with `SHA256`, without npm or a network.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

VENDOR = Path(__file__).resolve().parents[1] / "book" / "_static" / "vendor"

# What `PACKAGES` must yield, byte for byte, by file name.
SHA256 = {
    "anywidget.js": "b257c384632cd992e1758322ccaeeb6de8af7d57c0173efd462fc93041f9f5b6",
    "1551f4f60c37af51121f.woff2": "9834b82ad26e2a37583d22676a12dd2eb0fe7c80356a2114d0db1aa8b3899537",
    "7a3337626410ca2f4071.woff2": "e42a88444448ac3d60549cc7c1ff2c8a9cac721034c073d80a14a44e79730cca",
    "d878b0a6a1144760244f.woff2": "8ea8791754915a898a3100e63e32978a6d1763be6df8e73a39d3a90d691cdeef",
    "embed-amd.js": "ca87dff57c70ffb2658794fde0eab0e27e5f5472a1f5df7ab2b08e1039fc4b72",
    "LICENSE": "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30",
    "boldsymbol.js": "d6771fee0772db2657796c8d0e20e1878bb3237f6d3ed1e828e1834a4ff743ca",
    "MathJax_AMS-Regular.woff": "3de784d07b9fa8f104c10928a878ee879cf3305cae5195cba663c9c2bb0195eb",
    "MathJax_Calligraphic-Regular.woff": "26683bf201fb258a2237d9754616de9d4ecf4cc1cd39dd1902476df7d75f1d16",
    "MathJax_Main-Bold.woff": "88b98cad3688915e50da55553ff6ad185e0dce134b47f176e91b100f8a9b175c",
    "MathJax_Main-Italic.woff": "355254db9ca10a09a3b5f0929d74eb4670f44fbe864c07526a06213e0a0caf6c",
    "MathJax_Main-Regular.woff": "1cb1c39ea642f26a4dfed230b4aea1c3c218689421f6e9c0a7c1811693c4fa07",
    "MathJax_Math-BoldItalic.woff": "8ea8dbb1b02e6f730f55b4cb5d413b785b9f5c39807d0a0fa7da206a0824a457",
    "MathJax_Math-Italic.woff": "a009bea404f7a500ded48f8b9ad9cf16e12504b3195dd9e25975289b8256b0f0",
    "MathJax_Math-Regular.woff": "c01d3321e89b403c4b811aa153c4e618eda3421f92d8a072a02c8d190782a191",
    "MathJax_SansSerif-Regular.woff": "b418136e3b384baaadecb70bd3c48a8da9825210130b2897db808c44efc883cb",
    "MathJax_Script-Regular.woff": "af96f67d7accf5fd2a4a682d0b9f8b339f8ea6fe34c310c1694c8ba7f6ddc96f",
    "MathJax_Size1-Regular.woff": "c49810b53ecc0d87d8028762c518924197dd9d3f905b08f99ea241301085b9cb",
    "MathJax_Size2-Regular.woff": "30e889b58cbc51adfbb038ab1a96dc4025aa3542a3cff7712fc55ece510675e2",
    "MathJax_Size3-Regular.woff": "5cda41563a095bd70c78e2dda13d0f8cb922c71c90fffd0a0044c65173a66e83",
    "MathJax_Size4-Regular.woff": "3bc6ecaae7ecf6f8d7f8ea07bddbaca8601e2cb6e89d6aef58e78d9f6d8a398f",
    "MathJax_Typewriter-Regular.woff": "c56da8d69f1a0208b8e0703656c3264b6dd748bd452524c82b0385b60f6a68c1",
    "MathJax_Vector-Bold.woff": "36e0d72d8a7afc696a3e7a5c7369807634640de9b02257bca447bdf126221a27",
    "MathJax_Vector-Regular.woff": "72bc573386dd1d48c5bbd286302ca9e3400c5eb0f298e7cfbf945b9d08fc688f",
    "MathJax_Zero.woff": "481e39042508ae313a60618af1e37146ab93e9324c98e4c78b8f17fe55d41e0b",
    "tex-chtml.js": "0a6ded5abbce13331658dd239f34382abd06492c74b71b61e8caa8112ec55fa5",
    "require.js": "c1fc6b1d53af7522f78d664922abb32acac64ed0ecccb8f907f1e6fc7262563a",
}


@dataclass(frozen=True)
class Package:
    """A third-party package, its files (path there -> path in the vendor folder) and its licence."""

    name: str
    version: str
    registry: str
    homepage: str
    licence: str
    copyright: str
    files: dict[str, str]


PACKAGES = (
    Package(
        name="requirejs",
        version="2.3.8",
        registry="npm",
        homepage="https://requirejs.org",
        licence="MIT",
        copyright="Copyright jQuery Foundation and other contributors",
        files={"require.js": "require.js"},
    ),
    Package(
        name="@jupyter-widgets/html-manager",
        version="1.0.15",
        registry="npm",
        homepage="https://github.com/jupyter-widgets/ipywidgets",
        licence="BSD-3-Clause",
        copyright="Copyright (c) Jupyter Development Team",
        files={
            "dist/embed-amd.js": "html-manager/embed-amd.js",
            "dist/1551f4f60c37af51121f.woff2": "html-manager/1551f4f60c37af51121f.woff2",
            "dist/7a3337626410ca2f4071.woff2": "html-manager/7a3337626410ca2f4071.woff2",
            "dist/d878b0a6a1144760244f.woff2": "html-manager/d878b0a6a1144760244f.woff2",
        },
    ),
    Package(
        name="anywidget",
        version="0.11.0",
        registry="PyPI",
        homepage="https://anywidget.dev",
        licence="MIT",
        copyright="Copyright (c) 2022-2024 Trevor Manz",
        files={"anywidget/nbextension/index.js": "anywidget.js"},
    ),
    Package(
        name="mathjax",
        version="3.2.2",
        registry="npm",
        homepage="https://www.mathjax.org",
        licence="Apache-2.0",
        copyright="Copyright (c) The MathJax Consortium",
        files={
            "LICENSE": "mathjax/LICENSE",
            "es5/tex-chtml.js": "mathjax/tex-chtml.js",
            "es5/input/tex/extensions/boldsymbol.js": "mathjax/input/tex/extensions/boldsymbol.js",
        }
        | {
            f"es5/output/chtml/fonts/woff-v2/{font}": f"mathjax/output/chtml/fonts/woff-v2/{font}"
            for font in SHA256
            if font.endswith(".woff")
        },
    ),
)

BUNDLED = """\
html-manager/embed-amd.js is a bundle. Besides the Jupyter packages (BSD-3-Clause) it holds jQuery,
jQuery UI, Backbone, Underscore, is-plain-object, ajv and Lumino (MIT or BSD-3-Clause; their notices
stand in the file), and it uses the three .woff2 files beside it: Font Awesome Free 5 by Fonticons, Inc.
(fonts: SIL OFL 1.1; icons: CC BY 4.0).
"""

PERMISSION = {
    "MIT": """\
Permission is hereby granted, free of charge, to any person obtaining a copy of this software and
associated documentation files (the "Software"), to deal in the Software without restriction, including
without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the
following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial
portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT
LIMITED TO THE WARRANTIES OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO
EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER
IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR
THE USE OR OTHER DEALINGS IN THE SOFTWARE.
""",
    "BSD-3-Clause": """\
Redistribution and use in source and binary forms, with or without modification, are permitted provided
that the following conditions are met:

1. Redistributions of source code must retain the above copyright notice, this list of conditions and the
   following disclaimer.
2. Redistributions in binary form must reproduce the above copyright notice, this list of conditions and
   the following disclaimer in the documentation and/or other materials provided with the distribution.
3. Neither the name of the copyright holder nor the names of its contributors may be used to endorse or
   promote products derived from this software without specific prior written permission.

THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS" AND ANY EXPRESS OR IMPLIED
WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A
PARTICULAR PURPOSE ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE LIABLE FOR
ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT
LIMITED TO, PROCUREMENT OF SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN CONTRACT, STRICT LIABILITY, OR
TORT (INCLUDING NEGLIGENCE OR OTHERWISE) ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF
ADVISED OF THE POSSIBILITY OF SUCH DAMAGE.
""",
    "Apache-2.0": "The text of the licence is in mathjax/LICENSE.\n",
}


class VendorError(Exception):
    """A file or package is not what this script expects."""


def sha256(path: Path) -> str:
    """Return the sha256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def notice() -> str:
    """Return the text of NOTICE.txt: each package with its version, copyright and licence."""
    head = "Third-party files in this folder, unchanged, as scripts/vendor_js.py fetched them.\n"
    return "\n".join([head, *map(package_notice, PACKAGES), BUNDLED])


def package_notice(package: Package) -> str:
    """Return one package's part of NOTICE.txt."""
    title = f"{package.name} {package.version} ({package.registry}), {package.homepage}"
    files = ", ".join(sorted(path for path in package.files.values() if not path.endswith(".woff")))
    return "\n".join(
        [
            title,
            "=" * len(title),
            f"Files: {files}",
            f"Licence: {package.licence}",
            package.copyright,
            "",
            PERMISSION[package.licence],
        ]
    )


def fetch_npm(package: Package, target: Path) -> None:
    """Copy a package's files from the npm registry to `target`; raise VendorError on failure."""
    spec = f"{package.name}@{package.version}"
    with tempfile.TemporaryDirectory() as scratch:
        command = ["npm", "pack", spec, "--loglevel=error", "--pack-destination", scratch]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise VendorError(f"npm is not installed; it is needed to fetch {spec}") from error
        except subprocess.CalledProcessError as error:
            reason = "; ".join(error.stderr.splitlines()[:2])
            raise VendorError(f"`npm pack {spec}` failed: {reason}") from error
        with tarfile.open(next(Path(scratch).glob("*.tgz"))) as archive:
            archive.extractall(scratch, filter="data")
        copy_files(package, Path(scratch) / "package", target)


def fetch_installed(package: Package, target: Path) -> None:
    """Copy a package's files from the installed Python package; raise VendorError on another version."""
    try:
        distribution = metadata.distribution(package.name)
    except metadata.PackageNotFoundError as error:
        raise VendorError(f"the Python package {package.name} is not installed") from error
    if distribution.version != package.version:
        raise VendorError(f"{package.name} is {distribution.version} here, must be {package.version}")
    copy_files(package, Path(str(distribution.locate_file("."))), target)


def copy_files(package: Package, source: Path, target: Path) -> None:
    """Copy the named files of a package from `source` to `target`; raise VendorError when one is missing."""
    for there, here in package.files.items():
        if not (source / there).is_file():
            raise VendorError(f"{package.name} {package.version} has no file {there}")
        (target / here).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / there, target / here)


def differences(folder: Path) -> list[str]:
    """Return one sentence for each file of `folder` that is missing, unknown or not as expected."""
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    vendored = {path for package in PACKAGES for path in package.files.values()}
    found = [f"{path} is missing" for path in sorted((vendored | {"NOTICE.txt"}) - present)]
    unknown = sorted(present - vendored - {"NOTICE.txt"})
    found += [f"{path} is not known to scripts/vendor_js.py" for path in unknown]
    for path in sorted(present & vendored):
        got, must = sha256(folder / path), SHA256[Path(path).name]
        if got != must:
            found.append(f"{path} has sha256 {got}, must have {must}")
    if "NOTICE.txt" in present and (folder / "NOTICE.txt").read_text(encoding="utf-8") != notice():
        found.append("NOTICE.txt is not what scripts/vendor_js.py writes")
    return found


def fetch(target: Path) -> None:
    """Fetch all packages into the empty folder `target` and write NOTICE.txt."""
    for package in PACKAGES:
        (fetch_npm if package.registry == "npm" else fetch_installed)(package, target)
    (target / "NOTICE.txt").write_text(notice(), encoding="utf-8")


def vendor(folder: Path) -> None:
    """Replace `folder` by freshly fetched files; on VendorError it is left as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        fresh = Path(scratch) / "vendor"
        fresh.mkdir()
        fetch(fresh)
        require_expected(fresh)
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        fresh.rename(folder)


def require_expected(folder: Path) -> None:
    """Raise VendorError when `folder` differs from what is expected."""
    if found := differences(folder):
        raise VendorError("; ".join(found))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, default=VENDOR, help="folder to fill or check")
    parser.add_argument("--check", action="store_true", help="only compare the folder with the known hashes")
    options = parser.parse_args(arguments)
    try:
        (require_expected if options.check else vendor)(options.folder)
    except VendorError as error:
        print(f"vendor_js: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
