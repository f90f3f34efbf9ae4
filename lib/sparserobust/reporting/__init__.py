"""From tidy frames to tables, figures and verdicts."""
