"""How copies are composed: the amplification graph, voting, trajectories, evaluation."""
