// A program beside the server, whose name comes first.
package main

func main() {}
