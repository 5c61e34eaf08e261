"""Resources of the control API, a module for each subject. Each needs its rows in `agent/api_rules.py`.

Here requests are decoded and checked, handed to the service, and answers encoded; nothing is decided.
"""
