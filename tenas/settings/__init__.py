"""Settings as typed models: presets, resolved settings, the workflow's configuration. No torch.

Every error is one sentence that names the key, its value and what is allowed.
"""

from tenas.settings.base import checked, merged, preset_files, read_preset, read_yaml
from tenas.settings.retrain import check_retraining, retrain_settings
from tenas.settings.search import measures_of, read_settings, schedule, search_settings
from tenas.settings.study import read_study, study_settings

__all__ = [
    "check_retraining", "checked", "measures_of", "merged", "preset_files", "read_preset", "read_settings", "read_study",
    "read_yaml", "retrain_settings", "schedule", "search_settings", "study_settings",
]  # fmt: skip
