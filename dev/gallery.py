"""`make gallery`: run the commands of docs/guides/optimize.md and keep the images that they write.

Usage: python dev/gallery.py PAINTINGS TEXTURES [NAME...]; with names, only the commands that write NAME.*
"""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from nst_core.images import sample_photographs

DOCUMENT = Path("docs/guides/optimize.md")
PICTURES = Path("docs/pictures/optimization")


def main(paintings: Path, textures: Path, names: list[str]) -> None:
    """Run each command in a folder that has photographs/, paintings/ and textures/, as the document expects."""
    blocks = re.findall(r"^```sh\n(.*?)^```", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)
    nst = str(Path(sys.executable).parent / "nst")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        inputs = {"photographs": sample_photographs()[0].parent, "paintings": paintings, "textures": textures}
        for name, target in inputs.items():
            (folder / name).symlink_to(target.resolve())
        for mask in PICTURES.glob("mask-*.png"):
            (folder / mask.name).symlink_to(mask.resolve())
        for line in "".join(blocks).splitlines():
            output = line.split(" -o ")[1].split()[0]
            if names and Path(output).stem not in names:
                continue
            print("+", line, flush=True)
            subprocess.run([nst, *shlex.split(line)[1:]], cwd=folder, check=True)
            shutil.move(folder / output, PICTURES / output)


main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])
