"""Configuration: YAML in, checked values out. Nothing in a configuration is ever executed.

A configuration is complete in one file. Unknown keys are refused with the nearest valid name;
``a.b=c`` overrides are parsed as YAML values; `dump` writes what was really used. A file that a
stage has written (`write_config`) begins with the hash of what follows: one that is damaged, or was
edited, is not taken for what really ran.
"""

from anomaly.config.checks import check
from anomaly.config.reading import (
    load_config,
    override,
    parse_config,
    read_keys,
    write_config,
)
from anomaly.config.settings import (
    Config,
    DataSettings,
    DetectorFit,
    LevelSettings,
    ResultsSettings,
    dump,
    plain,
)

__all__ = [
    "Config",
    "DataSettings",
    "DetectorFit",
    "LevelSettings",
    "ResultsSettings",
    "check",
    "dump",
    "load_config",
    "override",
    "parse_config",
    "plain",
    "read_keys",
    "write_config",
]
