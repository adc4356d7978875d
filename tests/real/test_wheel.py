"""The wheel, as pip builds it, has what `llm-exporter bundle` writes."""

import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("compose.yaml", "Dockerfile", "deploy/compose", "grafana/dashboards", "grafana/provisioning", "prometheus")


@pytest.mark.real
def test_the_wheel_holds_the_files_of_the_bundle_and_no_links(tmp_path: Path) -> None:
    source = tmp_path / "source"  # pip leaves what it builds beside what it builds from
    unwanted = shutil.ignore_patterns(".*", "build", "*.egg-info", "tests", "__pycache__")
    shutil.copytree(ROOT, source, symlinks=True, ignore=unwanted)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--wheel-dir", tmp_path, source]
    subprocess.run(build, check=True, capture_output=True, timeout=300)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as packed:
        held = {name.removeprefix("exporter/bundle/files/"): packed.read(name) for name in packed.namelist()}
    for file in (
        each for part in PARTS for each in ((ROOT / part).rglob("*") if (ROOT / part).is_dir() else [ROOT / part])
    ):
        place = str(file.relative_to(ROOT))
        if file.is_file() and not place.startswith("prometheus/tests/"):
            assert held.get(place) == file.read_bytes(), place
