"""``verify DIR``: is every byte of the artifact the one that was written?"""

import json

from onnxforge.compiler.options import Artifact, AsJson, Debug


def verify(folder: Artifact, as_json: AsJson = False, debug: Debug = False) -> None:
    """Hash every file of an artifact again and compare with its manifest."""
    from onnxforge.runtimes import read_manifest, verify_files

    manifest = read_manifest(folder)
    verify_files(folder, full=True)
    size = sum(record.size for record in manifest.files)
    if as_json:
        print(json.dumps({"ok": True, "files": len(manifest.files), "bytes": size}))
    else:
        print(f"{folder}: {len(manifest.files)} files, {size / 1e6:.1f} MB, every byte as it was written")
