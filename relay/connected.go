package relay

// Connected is how many nodes can be given an exchange now.
func (r *Relay) Connected() int { return len(r.directory.all()) }
