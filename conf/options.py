"""The options of each group: the YAML files in its folder here, and in the one that --config-dir names."""

import difflib
from dataclasses import dataclass
from pathlib import Path

import yaml

from models.config import ConfigError

CONF_DIR = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Options:
    """What `GROUP=OPTION` can say."""

    files: dict[str, dict[str, Path]]
    """Group → option → its file."""

    @classmethod
    def find(cls, extra_dir: Path | None = None) -> "Options":
        """Ours, and the ones in `extra_dir`.

        Raises:
            ConfigError: if `extra_dir` holds none, or one whose name is taken.
        """
        files = {folder.name: found for folder in sorted(CONF_DIR.iterdir()) if (found := _yaml_files(folder))}
        if extra_dir is None:
            return cls(files)
        extra = {group: _yaml_files(extra_dir / group) for group in files}
        if not any(extra.values()):
            raise ConfigError(f"--config-dir {extra_dir}: name a folder that holds model/NAME.yaml or the like")
        for group, added in extra.items():
            for taken in sorted(added.keys() & files[group].keys()):
                raise ConfigError(f"{added[taken]}: {group}={taken} is there already; give your file another name")
        return cls({group: dict(sorted((ours | extra[group]).items())) for group, ours in files.items()})

    def unknown(self, group: str, typed: str) -> str:
        """Say that `group` has no option `typed`, and which there are."""
        known = self.files[group]
        if typed.startswith(("{", "[")):
            return f"{group}={typed}: choose one of {', '.join(known)}; a key below it is set by {group}.KEY=VALUE"
        close = difflib.get_close_matches(typed.removesuffix(".yaml"), known, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{group}={typed}: no such {group}; {hint}choose from {', '.join(known)}"

    def describe(self) -> str:
        """Every group with its options, a line each: * is the default, and the words are the file's first comment."""
        defaults: dict[str, str] = {}
        for entry in yaml.safe_load((CONF_DIR / "config.yaml").read_text())["defaults"]:
            defaults |= entry if isinstance(entry, dict) else {}
        lines = []
        for group, files in self.files.items():
            lines.append(f"  {group}=")
            for option, path in files.items():
                mark = "*" if option == defaults[group] else " "
                lines.append(f"   {mark} {option:12} {_first_comment(path)}".rstrip())
        return "\n".join(lines)


def _yaml_files(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml")) if path.is_file()}


def _first_comment(path: Path) -> str:
    first = path.read_text(errors="replace").partition("\n")[0]
    return first.removeprefix("#").strip() if first.startswith("#") and "@package" not in first else ""
