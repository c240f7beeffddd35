"""Laws: what a ladder's losses say about bigger runs, with intervals that admit what they do not.

`fit_power_law` is the first; every law is a form (forms), fitted with certainty (solver), with an
interval from the noise and the ladder's own reach (bootstrap), reported as one value (fit).
"""

from nanoscale.laws.fit import Fit, fit_power_law
from nanoscale.laws.forms import PowerLaw

__all__ = ["Fit", "PowerLaw", "fit_power_law"]
