"""A regular package: an installed one of the same name (kronfluence ships one) would hide a mere folder."""
