"""Flower's `flwr-clientapp` at a site, which runs approved bundles alone.

Flower's SuperExec starts `flwr-clientapp` by its name for every message; `dipro-fed site start` puts the kit's script
of that name first on the path, which comes here (warm_clientapps.py). The bundle is judged before anything of it is
unpacked; a refusal is written into the site's audit log and goes to the server as the reason why the site did not
answer. What then runs is the bundle's code: modules of the same names that the guard itself needed are forgotten.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path

from deployment.bundles import Approvals, BundleError
from deployment.work import KIT, at_work
from federation.audit import AUDIT, AuditLog
from federation.code_digest import PACKAGES
from federation.prompt_pulls import pull_promptly


def guarded(install: Callable[..., Path], kit: Path, *, forgotten: tuple[str, ...] = ()) -> Callable[..., Path]:
    """Flower's function that unpacks a bundle, behind the site's list of approved ones.

    Once one is unpacked, this process forgets the packages `forgotten`, so that it imports the bundle's.
    """

    def install_approved(fab_file: Path | bytes, *arguments: object, **options: object) -> Path:
        content = fab_file if isinstance(fab_file, bytes) else fab_file.read_bytes()
        try:
            Approvals(kit=kit).require(content)
        except BundleError as error:
            AuditLog(path=kit / AUDIT).write("refused", asked="run a bundle", reason=str(error))
            raise
        installed = install(content, *arguments, **options)
        _forget(forgotten)
        return installed

    return install_approved


def _forget(packages: tuple[str, ...]) -> None:
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            del sys.modules[name]


def main() -> None:
    """Run Flower's command with its installation of bundles guarded; without a kit nothing runs."""
    from flwr.supernode.cli import flwr_clientapp
    from flwr.supernode.runtime import run_clientapp

    kit = os.environ.get(KIT, "")
    if not kit or not Path(kit).is_dir():
        raise SystemExit(
            f"expected the site's kit in {KIT}, found {kit or 'nothing'}; start the site with `dipro-fed site start`"
        )
    install = run_clientapp.install_from_fab  # pyright: ignore[reportPrivateImportUsage]
    run_clientapp.install_from_fab = guarded(install, Path(kit), forgotten=PACKAGES)  # pyright: ignore[reportPrivateImportUsage]
    pull_promptly()
    with at_work(Path(kit)):
        flwr_clientapp()


if __name__ == "__main__":
    main()
