"""Counts, covariates, genes and minibatches."""
