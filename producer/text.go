package main

// optional turns a text that may be missing into what JSON shows of it.
func optional(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// array makes JSON show an empty array, never null.
func array(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
