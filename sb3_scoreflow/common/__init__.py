"""The common part of all algorithms: the flow, its networks and policy, and the base class on top of Stable-Baselines3's."""
