"""What is known of the whole suite: the files that take longest, and all that was collected."""

import pytest

LONGEST = (
    "test_search.py", "test_export.py", "test_accelerate_example.py", "test_triton.py", "test_training_again.py",
    "test_integrations.py", "test_export_of_any.py", "test_wrapped_models.py", "test_distributed.py", "test_pages.py",
    "test_export_cache.py", "test_tour.py", "test_from_the_hub.py", "test_run.py", "test_report.py", "test_resume.py",
    "test_export_command.py", "test_text.py", "test_figures.py", "test_learned.py", "test_compiled.py", "test_damage.py",
    "test_any_model.py", "test_within_limits.py", "test_segmentation.py",
)  # fmt: skip
"""In about this order, of what always runs and of the slow tests alike; each is begun before all others."""

COLLECTED = pytest.StashKey[list[pytest.Item]]()
"""In the configuration: all tests that were collected, also those that a run leaves out."""
