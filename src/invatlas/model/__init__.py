"""Networks, priors, likelihoods and the objective, in torch alone."""
