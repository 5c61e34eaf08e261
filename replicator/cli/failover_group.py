"""`dtctl failover`, with all that its modules have."""

from replicator.cli import failover, failover_addresses, failover_scripts, failover_trials, guards, siblings

app = failover.app
app.add_typer(failover_scripts.app, name="scripts")
for _module in (failover_trials, failover_addresses, guards, siblings):
    _module.register(app)
