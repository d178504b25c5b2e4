package process

// Names returns the names of user and group IDs. If several entries share an ID, the first one
// counts.
func (a Accounts) Names() (users, groups map[uint32]string) {
	return a.names("etc/passwd", 7), a.names("etc/group", 4)
}

func (a Accounts) names(file string, fields int) map[uint32]string {
	names := map[uint32]string{}
	for _, entry := range a.lines(file, fields) {
		if id, ok := parseID(entry[2]); ok && names[id] == "" {
			names[id] = entry[0]
		}
	}
	return names
}
