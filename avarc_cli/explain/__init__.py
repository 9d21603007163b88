"""Why a model says what it says: maps of log-likelihood ratios, their pictures and pages."""
