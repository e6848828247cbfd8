"""Each plugin is loaded where it can do no harm, and whoever cannot be loaded is named."""

import json
import os
import subprocess
import sys

PLUGINS = {
    "good": "class Part: pass",
    "raising": "raise ValueError('broken inside')",
    "exiting": "import sys; sys.exit(0)",
    "ending": "import os; os._exit(0)",
    "crashing": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hanging": "import time; time.sleep(600)",
    "talking": "print('noise'); class_ = 1\nclass Part: pass",
    "lacking": "import nowhere_to_be_found",
}
PROGRAM = """
import json
from dataclasses import asdict
from retroflow.registry import Registry
from retroflow.training import component_check
component_check.KINDS = (Registry("retriever", "retroflow.retrievers", {}),)
found = [asdict(loaded) for loaded in component_check.check_components(seconds=8.0)]
print(json.dumps({loaded["name"]: loaded for loaded in found}))
"""


def install(folder, name, source):
    """Lay out a distribution with one retriever as pip would."""
    (folder / f"plugin_{name}.py").write_text(source)
    info = folder / f"plugin_{name}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: plugin-{name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[retroflow.retrievers]\nmy_{name} = plugin_{name}:Part\n")


def test_every_plugin_gets_its_verdict_however_another_behaves(tmp_path):
    for name, source in PLUGINS.items():
        install(tmp_path, name, source)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, env=environment, check=True
    )
    found = {name.removeprefix("my_"): loaded for name, loaded in json.loads(result.stdout).items()}
    assert PLUGINS.keys() <= found.keys()  # others may be installed for real
    assert found["good"]["error"] is found["talking"]["error"] is None
    for name, words in {
        "raising": "broken inside",
        "exiting": "SystemExit",
        "ending": "ended the process",
        "crashing": "ended the process (signal 11) while it was loaded; uninstall or mend plugin-crashing",
        "hanging": "did not end within 8 s",
        "lacking": "nowhere_to_be_found",
    }.items():
        assert words in found[name]["error"], name
        assert found[name]["owner"] == f"plugin-{name} 1.0"
        assert not found[name]["is_optional"]
