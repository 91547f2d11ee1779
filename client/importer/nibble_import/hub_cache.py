"""Finds the model folder in what the user named: the folder itself, or one of a hub cache."""

from nibble_import.folder import ImportRefused


def model_folder(source):
    """The folder with config.json: `source`, or the snapshot of `source` = models--ORG--NAME."""
    if not source.is_dir():
        raise ImportRefused(f"{source}: not found, expected a folder")
    if (source / "config.json").is_file():
        return source
    snapshots = source / "snapshots"
    if snapshots.is_dir():
        return snapshot_folder(source, snapshots)
    models = sorted(path.name for path in source.glob("models--*"))
    if models:
        raise ImportRefused(f"{source}: found a hub cache, expected one of its models: "
                            f"{', '.join(models)}")
    raise ImportRefused(f"{source}: no config.json and no snapshots, "
                        "expected a Hugging Face folder or a hub cache's models--ORG--NAME")


def snapshot_folder(source, snapshots):
    """The snapshot that refs/main names, else the only one."""
    found = sorted(path.name for path in snapshots.iterdir() if path.is_dir())
    reference = source / "refs" / "main"
    if reference.is_file():
        name = reference.read_text(encoding="utf-8", errors="replace").strip()
        if name not in found:
            raise ImportRefused(f"{reference}: found {name}, expected one of "
                                f"{', '.join(found) or 'no snapshots'}")
        return snapshots / name
    if len(found) != 1:
        raise ImportRefused(f"{snapshots}: no refs/main and {len(found)} snapshots "
                            f"({', '.join(found)}), expected one: name its folder")
    return snapshots / found[0]
