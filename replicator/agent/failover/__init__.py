"""Failover on one agent: monitors of sources, taking over, going home. docs/developers/failover.md"""
