"""Laws: what runs' losses say about bigger runs, with intervals that admit what they do not.

A law is a form (forms), fitted with certainty (problem, solver, objectives), with an interval from
resamples (bootstrap), reported as one value (result): `fit_law` for any law and table (fit),
`fit_power_law` for a ladder with seeds (ladder). What follows from a fit: Approaches 1 and 2 and
their bias (isoflop), the loss of a new run and hold-outs (predict), the next run (plan), how far a
parameter can be pushed (profile), which run it hangs on (influence), how other forms do on the same
runs (rivals), and how much of all that is choice (multiverse). A law of another thing than a loss:
the best learning rate or batch (sweeps), or both (joint_sweeps).
"""

from nanoscale.laws.fit import LawFit, fit_law
from nanoscale.laws.forms import Law, Parameter, Term
from nanoscale.laws.influence import Influence, influence_of
from nanoscale.laws.joint_sweeps import JointSweeps, joint_sweep_laws
from nanoscale.laws.ladder import LadderFit, fit_power_law
from nanoscale.laws.profile import Profiles, profile_law
from nanoscale.laws.profile_search import Profile
from nanoscale.laws.registry import LAWS, law_of, load_laws, register_law
from nanoscale.laws.result import Fit
from nanoscale.laws.rivals import Rivals, rivals_of
from nanoscale.laws.sweeps import SweepLaw, sweep_law

__all__ = [
    "LAWS",
    "Fit",
    "Influence",
    "JointSweeps",
    "LadderFit",
    "Law",
    "LawFit",
    "Parameter",
    "Profile",
    "Profiles",
    "Rivals",
    "SweepLaw",
    "Term",
    "fit_law",
    "fit_power_law",
    "influence_of",
    "joint_sweep_laws",
    "law_of",
    "load_laws",
    "profile_law",
    "register_law",
    "rivals_of",
    "sweep_law",
]
