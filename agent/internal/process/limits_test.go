package process

import "testing"

func TestLimitsFor(t *testing.T) {
	const mib = 1 << 20
	for _, c := range []struct{ total, available, memory, together, processes int64 }{
		{96 * mib, 70 * mib, 54 * mib, 62 * mib, 192},
		{40 * mib, 10 * mib, 20 * mib, 20 * mib, 128}, // half of the memory at least
		{480 * mib, 450 * mib, 390 * mib, 420 * mib, 960},
		{8192 * mib, 8000 * mib, 7872 * mib, 7936 * mib, 16384},
	} {
		if got := LimitsFor(c.total, c.available); got != (CommandLimits{c.memory, c.together, c.processes}) {
			t.Errorf("%d of %d MiB: got %+v", c.available/mib, c.total/mib, got)
		}
	}
}
