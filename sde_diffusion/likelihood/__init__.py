"""What does a model say of data?  Their exact log-density with its errors, or a bound on it."""

from sde_diffusion.likelihood import dequantize
from sde_diffusion.likelihood.bits import bits_per_dim
from sde_diffusion.likelihood.bound import continuous_elbo, elbo
from sde_diffusion.likelihood.bound_terms import Estimate
from sde_diffusion.likelihood.dataset import dataset_log_prob
from sde_diffusion.likelihood.decoder import Bins, CategoricalDecoder, GaussianDecoder
from sde_diffusion.likelihood.exact import Method, log_prob
from sde_diffusion.likelihood.result import DatasetLogProb, Elbo, LogProb
from sde_diffusion.likelihood.route import Density, LikelihoodWarning
from sde_diffusion.likelihood.trace import Exact, Orthogonal, Rademacher, Trace, divergence

__all__ = [
    "Bins",
    "CategoricalDecoder",
    "DatasetLogProb",
    "Density",
    "Elbo",
    "Estimate",
    "Exact",
    "GaussianDecoder",
    "LikelihoodWarning",
    "LogProb",
    "Method",
    "Orthogonal",
    "Rademacher",
    "Trace",
    "bits_per_dim",
    "continuous_elbo",
    "dataset_log_prob",
    "dequantize",
    "divergence",
    "elbo",
    "log_prob",
]
