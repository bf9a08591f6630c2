"""The demonstration in containers, as ``docker-compose.yml`` runs it: one program, three stages, each once.

prepare   without a network: base model, datasets, specification, initial adapter
enrol     every site is invited, enrols, gets its policy and has its trainer look at its data; then the agents start
run       the run is created, started and watched; the release is signed and verified, and every audit log

Coordinator, agents and trainers are containers of their own. This program plays the people, and has what they have:
tokens, codes, and (in the place of each hospital's engineer) the state folders of the sites. It has no engine's socket.
Each stage may be repeated; what is done is left as it is.
"""
