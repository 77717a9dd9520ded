"""What Hydra, OmegaConf or the YAML reader refused, as the one line that a user can act on."""

import re
from collections.abc import Iterator, Sequence

from omegaconf.errors import InterpolationKeyError, InterpolationResolutionError, OmegaConfBaseException
from yaml import MarkedYAMLError

from conf.keys import Keys
from conf.overrides import typed_value


def complaint(error: BaseException, words: Sequence[str], keys: Keys) -> str:
    """One line that names the key, the YAML file if it was there, and what to set it to."""
    if isinstance(error, MarkedYAMLError) and error.problem_mark:
        return f"{error.problem_mark.name}, line {error.problem_mark.line + 1}: {error.problem}"
    if isinstance(error, UnicodeError):
        return "a YAML file in --config-dir is not UTF-8: save it as that"
    if isinstance(error, RecursionError):
        return "a YAML file in --config-dir holds itself: break the loop of & and *"
    causes = list(_causes(error))
    files = [match[1] for cause in causes if (match := re.search(r"In '(.+?/.+?)'", str(cause)))]
    cause = next((cause for cause in causes if isinstance(cause, OmegaConfBaseException)), None)
    if cause is not None and cause.full_key:
        return _about_key(cause, files, words, keys)
    where = f"{files[0]}.yaml: " if files else ""
    if cause is not None and "with ListConfig" in str(cause):
        group = f"{files[0].partition('/')[0]}." if files else ""
        lists = [key for key in keys.items if key.startswith(group)] or keys.items
        return f"{where}a group of keys stands where a list belongs ({', '.join(lists)})"
    if cause is not None:
        return f"{where}a single value stands where a group of keys belongs"
    return where + re.sub(r"^In '.+?': ", "", str(error).partition("\n")[0])


def _about_key(cause: OmegaConfBaseException, files: Sequence[str], words: Sequence[str], keys: Keys) -> str:
    key = _full_key(cause, keys)
    where = f" in {files[0]}.yaml" if files else ""
    if key in keys.names:
        return f"{key}{where}: {keys.section(key)}"
    if keys.type_of(key) is None:
        return keys.unknown(key, where)
    value = cause.value if files else typed_value(key, words)
    shown = key if value is None else f"{key}={' '.join(str(value).split())}"  # a YAML text may have many lines
    reason = ""
    if isinstance(cause, InterpolationKeyError) and (missing := re.search(r"key '(.+?)' not found", str(cause))):
        reason = f"there is no key {missing[1]}; "
    elif isinstance(cause, InterpolationResolutionError):
        reason = "what it refers to cannot be one; "
    return f"{shown}{where}: {reason}set it to {keys.expected(key)}"


def _full_key(cause: OmegaConfBaseException, keys: Keys) -> str:
    """OmegaConf checks an item of a list on its own, and names it as if it were all there is."""
    key = cause.full_key or ""
    lists = [name for name, kind in keys.items.items() if cause.object_type is kind and not key.startswith(name)]
    return f"{lists[0]}[].{key}" if lists else key


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
