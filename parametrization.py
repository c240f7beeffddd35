"""SP, muP, CompleteP and `register` for your own rules, under the original README's name.

They are nanoscale/spec/parametrization.py; docs/reference/parametrization.md has every rule.
"""

from nanoscale.spec.parametrization import COMPLETEP, MUP, SP, Power, Scaling, Scheme, register

__all__ = ["COMPLETEP", "MUP", "SP", "Power", "Scaling", "Scheme", "register"]
