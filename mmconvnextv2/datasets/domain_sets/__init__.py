"""Real images that are not photographs, cut from what installed packages carry."""

from mmconvnextv2.datasets.domain_sets.builder import DOMAINS, build_domain_set, describe_domains
from mmconvnextv2.datasets.domain_sets.domain import Domain, SourceImage

__all__ = ["DOMAINS", "Domain", "SourceImage", "build_domain_set", "describe_domains"]
