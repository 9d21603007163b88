"""Classification runs: the run folder, records, metrics, reports and exports."""
