"""The log of a made-up run that uses all that hides: patient-level and site-level privacy, and masks."""

from pathlib import Path

from federation.audit import AUDIT, AuditLog

SECTIONS = {
    "patient_privacy": {"enabled": True, "epsilon": 8.0},
    "site_privacy": {"enabled": True, "epsilon": 4.0},
    "secure_aggregation": {"enabled": True},
}
MEMBERS = ["north", "south", "west"]


def write_hiding_log(folder: Path, settings: dict = SECTIONS) -> AuditLog:
    """Three rounds: `west` is lost in the second, which is begun twice; the third has no sum yet."""
    log = AuditLog(path=folder / AUDIT)
    log.write("run began", settings=settings)
    for number, survivors in ((1, MEMBERS), (2, MEMBERS[:2])):
        log.write("sent", exchange=f"round {number}, train", site="north", bytes=10)
        log.write("masking", round=number, attempt=f"{number}a")
        log.write("unmasked", round=number, attempt=f"{number}a", members=MEMBERS, survivors=survivors)
        log.write("charged", round=number, epsilon=1.5 * number, delta=1e-5, budget=4.0, clip=1.0, far_longer=[])
        log.write("aggregated", round=number, sites=len(survivors), norms={}, with_others={}, left_out={})
        sites = {site: {"steps": 5 * number, "epsilon": 2.0 * number + place} for place, site in enumerate(MEMBERS)}
        log.write("privacy", round=number, delta=1e-5, budget=8.0, statistics="noised", sites=sites)
    log.write("masking", round=2, attempt="2b")
    log.write("unmasked", round=2, attempt="2b", members=MEMBERS, survivors=MEMBERS[:2])
    log.write("masking", round=3, attempt="3a")
    return log
